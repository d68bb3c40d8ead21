"""Who runs when: sequences on slots, prefixes that are reused, drafts that pay."""
