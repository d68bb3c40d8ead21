"""OpenAI's Python SDK: models, chat, streams, completions, responses, errors."""

import openai

client, model = openai.OpenAI(), "deltart-nano"
hi = [{"role": "user", "content": 'Type "planet" backwards'}]
assert [m.id for m in client.models.list()] == [model] and client.models.retrieve(model).id == model
reply = client.chat.completions.create(
    model=model,
    messages=[{"role": "developer", "content": "Be brief."}, *hi],
    temperature=0,
    seed=1,
    n=2,
    stop=["X"],
    max_completion_tokens=150,
    logprobs=True,
    top_logprobs=2,
    metadata={"a": "b"},
    user="u",
    store=False,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    logit_bias={"5": -100},
    reasoning_effort="low",
    service_tier="auto",
    extra_body={"top_k": 20, "chat_template_kwargs": {"enable_thinking": False}},
)
assert len(reply.choices) == 2 and reply.choices[0].message.role == "assistant"
assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
whole = client.chat.completions.create(model=model, messages=hi, temperature=0)
assert whole.choices[0].message.content == "tenalp" and whole.choices[0].message.reasoning_content
chunks = list(
    client.chat.completions.create(
        model=model, messages=hi, temperature=0, stream=True, stream_options={"include_usage": True}
    )
)
assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "tenalp"
assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
with client.chat.completions.stream(model=model, messages=hi, temperature=0) as stream:
    for _ in stream:
        pass
    assert stream.get_final_completion().choices[0].message.content == "tenalp"
turn = client.chat.completions.create(
    model=model, messages=[*hi, whole.choices[0].message, {"role": "user", "content": "Thanks"}], max_tokens=5
)
assert turn.usage.prompt_tokens_details.cached_tokens > 0
text = client.completions.create(model=model, prompt="Once", max_tokens=4, logprobs=1, echo=True)
assert text.choices[0].text.startswith("Once")
answer = client.responses.create(model=model, input=hi, instructions="Be nice.", max_output_tokens=200)
assert answer.status in ("completed", "incomplete") and answer.usage.output_tokens > 0
with client.responses.stream(model=model, input=hi, temperature=0) as stream:
    kinds = {event.type for event in stream}
    assert stream.get_final_response().output_text == "tenalp"
assert {"response.created", "response.output_text.delta", "response.completed"} <= kinds
for error, fields in (
    (openai.NotFoundError, {"model": "gpt-5", "messages": hi}),
    (openai.BadRequestError, {"model": model, "messages": hi, "temperature": -1}),
    (openai.BadRequestError, {"model": model, "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}]}]}),
):  # fmt: skip
    try:
        client.chat.completions.create(**fields)
    except error as refused:
        assert refused.body["message"], refused
    else:
        raise AssertionError(fields)
