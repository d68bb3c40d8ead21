"""Tests of llama.cpp's server that another server can't be asked: (what FILE::TEST begins with, reason)."""

NATIVE = "asks /completion, llama.cpp's own API"
WORDS = "counts tokens of tinyllama's or compares its words"
TEMPLATES = "brings a chat template of another family, and asks /apply-template"
FIELDS = "looks for fields of llama.cpp's own in answers (timings, __verbose, prompt_progress, a fingerprint b...)"
ASKED = "asks with fields of llama.cpp's own (grammar, json_schema); here they are guided_grammar and response_format"
PLACES = "asks for pages or endpoints of llama.cpp's own (/props, /slots, /models without a version, web files)"
FLAGS = "starts the server with a flag that has no counterpart here (several addresses, no page, drafts by file)"
METRICS = "reads llamacpp:* metrics; here they have vLLM's names"
ORIGINS = "wants llama.cpp's own CORS headers; here CORS is off unless --allowed-origins"
FIRST = "wants content null in a stream's first chunk; OpenAI's own has an empty text there"
REFUSED = "wants another status or error type than OpenAI's and Anthropic's own, which are kept here"
FILES = "reads images from the server's files, which are never served here"
PICTURES = "needs tinygemma3 to see pictures of the hub's"
PREFILL = "wants the last assistant message continued, which is not offered"
ENDS = "expects that the model does not end by itself"

_CHAT, _TEXT, _KEYS = "test_chat_completion.py::test_", "test_completion.py::test_", "test_security.py::test_"
REASONS = (
    (_CHAT + r"(chat_completion\[|chat_completion_stream\[|chat_completion_cached_tokens)", WORDS),
    (_CHAT + r"(chat_completion_with_openai_library|chat_template$|verbose_debug|return_progress)", FIELDS),
    (_CHAT + r"(chat_completion_with_timings|chat_completions_token_count)", FIELDS),
    (_CHAT + r"(chat_template_assistant_prefill|chat_template_continue)", PREFILL),
    (_CHAT + r"apply_chat_template", TEMPLATES),
    (_CHAT + r"(completion_with_json_schema|completion_with_grammar|completion_with_invalid_grammar)", ASKED),
    (_CHAT + r"logprobs_stream", FIRST),
    (_CHAT + r"context_size_exceeded", REFUSED),
    (_CHAT + r"invalid_chat_completion_req\[messages7\]", REFUSED),
    (_TEXT + r"completion_with_openai_library", FIELDS),
    (_TEXT + r"(completion_stream_with_openai_library|json_prompt_mtm_error)", ""),
    (_TEXT, NATIVE),
    (r"test_basic.py::test_server_(props|slots|models|model_aliases)", PLACES),
    (r"test_basic.py::test_(server_multiple_addresses|no_ui)", FLAGS),
    (r"test_basic.py::test_load_split_model", NATIVE),
    (r"test_compat_anthropic.py::test_anthropic_(vision_format|tool_result_with_image|empty_messages)", REFUSED),
    (r"test_compat_anthropic.py::test_anthropic_vision_base64", PICTURES),
    (r"test_compat_anthropic.py::test_anthropic_thinking_history_in_template", TEMPLATES),
    (r"test_compat_oai_responses.py::test_responses_stream_with_llama_telemetry", FIELDS),
    (r"test_ctx_shift.py::test_ctx_shift_disabled_stream", ENDS),
    (r"test_(ctx_shift|ignore_eos).py", NATIVE),
    (r"test_metrics.py", METRICS),
    (r"test_speculative.py", FLAGS),
    (r"test_template.py", TEMPLATES),
    (r"test_tokenize.py::test_tokenize_with_(bos|pieces)", WORDS),
    (r"test_tool_call.py::test_completion_without_tool_call_fast.*STREAMED", FIRST),
    (_KEYS + r"(cors|access_static)", ORIGINS),
    (_KEYS + r"(correct_api_key|openai_library_correct)", PLACES),
    (_KEYS + r"local_media_file.*True", FILES),
    (r"test_vision_api.py::test_(models|v1_models)", PLACES),
    (r"test_vision_api.py::test_vision_((chat_)?completion\[.*True|chat_completion_token|embeddings)", PICTURES),
)
