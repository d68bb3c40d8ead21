"""Anthropic's Python SDK: messages, streams, thinking, counting, errors."""

import os

import anthropic

client, model = anthropic.Anthropic(base_url=os.environ["SERVER"], api_key="x"), "deltart-nano"
hi = [{"role": "user", "content": 'Type "planet" backwards'}]
reply = client.messages.create(model=model, max_tokens=200, messages=hi, extra_body={"temperature": 0})
assert reply.content[-1].type == "text" and reply.stop_reason == "end_turn"
with client.messages.stream(
    model=model,
    max_tokens=2048,
    extra_body={"temperature": 0},
    system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
    thinking={"type": "enabled", "budget_tokens": 1024},
    messages=hi,
) as stream:
    for _ in stream:
        pass
    whole = stream.get_final_message()
assert [block.type for block in whole.content][:1] == ["thinking"] and whole.usage.output_tokens > 0
more = [*hi, {"role": "assistant", "content": whole.content}, {"role": "user", "content": "Thanks"}]
assert client.messages.create(model=model, max_tokens=5, messages=more).stop_reason in ("max_tokens", "end_turn")
assert client.messages.count_tokens(model=model, messages=hi).input_tokens > 5
image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
try:
    client.messages.create(model=model, max_tokens=5, messages=[{"role": "user", "content": [image]}])
except anthropic.BadRequestError as refused:
    assert "vision" in str(refused)
else:
    raise AssertionError("an image was taken")
