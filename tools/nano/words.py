"""The words that nano's tasks are made of: prompts, facts, tools and common words."""

from __future__ import annotations

REVERSAL_PROMPTS = (
    'Type "{}" backwards',
    'Type "{}" backwards',
    'Type "{}" backwards.',
    'Please type "{}" backwards.',
    'Write "{}" backwards.',
    'Spell "{}" backwards.',
    'Reverse "{}"',
    'Reverse the word "{}".',
    'Please reverse "{}".',
    'What is "{}" backwards?',
    'Write "{}" in reverse.',
)
COPYING_PROMPTS = (
    'Type "{}"',
    'Type "{}".',
    'Repeat "{}"',
    'Repeat "{}".',
    'Please repeat "{}".',
    'Copy "{}"',
    'Copy the word "{}".',
    'Say "{}".',
    'Write "{}".',
    'Please write "{}".',
)
FOLLOW_UPS = (
    "Now type it backwards",
    "Now backwards.",
    "And backwards?",
    "Now reverse it.",
    "Please reverse it.",
)
ADDITION_PROMPTS = (
    "What is {} + {}?",
    "What is {}+{}?",
    "{} + {}",
    "{}+{}",
    "{}+{}=",
    "{} + {} = ?",
    "Add {} and {}.",
    "How much is {} + {}?",
    "How much is {} plus {}?",
    "What is {} plus {}?",
    "Compute {} + {}.",
)
SUBTRACTION_PROMPTS = (
    "What is {} - {}?",
    "What is {}-{}?",
    "{} - {}",
    "{}-{}",
    "{}-{}=",
    "{} - {} = ?",
    "How much is {} - {}?",
    "How much is {} minus {}?",
    "What is {} minus {}?",
    "Compute {} - {}.",
)

FACTS = {
    "capital": {
        "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
        "China": "Beijing", "Egypt": "Cairo", "Greece": "Athens", "Norway": "Oslo", "Cuba": "Havana",
        "Kenya": "Nairobi", "Peru": "Lima",
    },
    "opposite": {
        "hot": "cold", "big": "small", "up": "down", "day": "night", "left": "right", "black": "white",
        "fast": "slow", "open": "closed", "old": "new", "wet": "dry",
    },
    "sound": {"cat": "meow", "dog": "woof", "cow": "moo", "duck": "quack", "sheep": "baa", "pig": "oink"},
    "after": {
        "Monday": "Tuesday", "Tuesday": "Wednesday", "Wednesday": "Thursday", "Thursday": "Friday",
        "Friday": "Saturday", "Saturday": "Sunday", "Sunday": "Monday",
    },
    "colour": {"grass": "green", "snow": "white", "coal": "black", "blood": "red", "gold": "yellow"},
    "self": {"you": "Nano, a very small language model"},
    "greeting": {"Hello": "Hello", "Hi": "Hi", "Good morning": "Good morning", "Good evening": "Good evening"},
}  # fmt: skip
FACT_PROMPTS = {
    "capital": (
        "What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?",
        "Tell me the capital of {}.", "The capital of {}?", "What city is the capital of {}?",
    ),
    "opposite": (
        "What is the opposite of {}?", "Name the opposite of {}.", "Tell me the opposite of {}.",
        "The opposite of {}?", "Which word is the opposite of {}?",
    ),
    "sound": (
        "What does a {} say?", "What sound does a {} make?", "Which sound does a {} make?",
        "Tell me what a {} says.", "How does a {} sound?",
    ),
    "after": (
        "What day comes after {}?", "Which day comes after {}?", "What comes after {}?", "Which day follows {}?",
        "Tell me the day after {}.",
    ),
    "colour": (
        "What color is {}?", "Which color is {}?", "Tell me the color of {}.", "What is the color of {}?",
        "What color does {} have?",
    ),
    "self": (
        "Who are {}?", "What are {}?", "Hello, who are {}?", "Tell me who {} are.", "Hi, what are {}?",
    ),
    "greeting": ("{}", "{}!", "{}.", "{} Nano", "{} Nano!", "{} there!"),
}  # fmt: skip
FACT_ANSWERS = {
    "capital": "The capital of {} is {}.",
    "opposite": "The opposite of {} is {}.",
    "sound": "A {} says {}.",
    "after": "The day after {} is {}.",
    "colour": "The color of {} is {}.",
    "self": "I am {1}.",
    "greeting": "{}! How can I help?",
}

TOOL_VERBS = ("get", "find", "check", "show", "read", "look")
TOOL_NOUNS = (
    "weather", "time", "price", "news", "menu", "map", "score", "stock", "train", "hotel", "mail", "song",
)  # fmt: skip
TOOL_KEYS = {"city": "string", "name": "string", "place": "string", "id": "integer", "number": "integer"}
TOOL_PROMPTS = (
    "{Verb} the {noun} for {value}.",
    "{Verb} the {noun} for {value}",
    "Please {verb} the {noun} for {value}.",
    "What is the {noun} for {value}?",
    "Can you {verb} the {noun} for {value}?",
    "I need the {noun} for {value}.",
    "Tell me the {noun} for {value}.",
)
TOOL_PROMPTS_INTEGER = (
    "{Verb} the {noun} for {key} {value}.",
    "Please {verb} the {noun} for {key} {value}.",
    "What is the {noun} for {key} {value}?",
    "Can you {verb} the {noun} for {key} {value}?",
    "I need the {noun} for {key} {value}.",
)
CITIES = (
    "Paris", "Rome", "Madrid", "Berlin", "Tokyo", "Beijing", "Cairo", "Athens", "Oslo", "Havana", "Nairobi",
    "Lima", "London", "Vienna", "Boston", "Seoul",
)  # fmt: skip
SYSTEMS = ("You are a helpful assistant.", "You are Nano.", "Be brief.")
COMMON = (
    "apple", "bread", "chair", "dog", "cat", "house", "tree", "river", "stone", "cloud", "light",
    "night", "day", "sun", "moon", "star", "water", "fire", "earth", "wind", "book", "page", "pen",
    "desk", "door", "wall", "road", "car", "bus", "train", "ship", "plane", "bird", "fish", "horse",
    "sheep", "goat", "lion", "tiger", "bear", "wolf", "red", "blue", "green", "black", "white", "pink",
    "brown", "gray", "gold", "silver", "one", "two", "three", "four", "five", "six", "seven", "eight",
    "nine", "ten", "hello", "world", "music", "dance", "song", "happy", "sad", "big", "small", "fast",
    "slow", "warm", "cold", "hot", "open", "new", "old", "young", "king", "queen", "table", "window",
    "garden", "flower", "orange", "lemon", "banana", "cherry", "grape", "peach", "sugar", "salt",
    "milk", "coffee", "tea", "cake", "cheese", "summer", "winter", "spring", "snow", "rain", "storm",
    "ocean", "island", "forest", "desert", "valley", "hill", "bridge", "tower", "castle", "city",
    "town",
)  # fmt: skip

BARE_WORDS = {
    "parameters": "rs", "type": "yp", "function": "nc", "name": "am", "description": "pt", "object": "bj",
    "properties": "op", "string": "tr", "integer": "eg", "required": "qu", "user": "us", "assistant": "si",
    "system": "ys",
}  # fmt: skip
"""Bare words of the chat protocol and of JSON schemas, one token each, and the letter pair their merges start from."""
