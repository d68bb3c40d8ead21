// OpenAI's JavaScript SDK: models, chat, stream, responses; with STRUCTURED=1 a tool runner and JSON by a schema.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI();
const model = "deltart-nano";
const messages = [{ role: "user", content: 'Type "planet" backwards' }];
for await (const one of await client.models.list()) assert.equal(one.id, model);
const reply = await client.chat.completions.create({ model, messages: [{ role: "developer", content: "Be brief." }, ...messages], max_completion_tokens: 8 });
assert.equal(reply.usage.completion_tokens <= 8, true);
const stream = await client.chat.completions.create({ model, messages, temperature: 0, stream: true, stream_options: { include_usage: true } });
let text = "", last;
for await (const chunk of stream) { last = chunk; text += chunk.choices[0]?.delta.content ?? ""; }
assert.equal(text, "tenalp");
assert.ok(last.usage.total_tokens > 0);
let events = 0;
for await (const event of await client.responses.create({ model, input: messages, temperature: 0, stream: true })) events += event.type ? 1 : 0;
assert.ok(events > 5);
if (process.env.STRUCTURED) {
  const parameters = { type: "object", properties: { city: { type: "string", maxLength: 20 } }, required: ["city"] };
  let called = 0;
  const run = client.chat.completions.runTools({ model, stream: true, messages: [{ role: "user", content: "weather in Paris?" }], tool_choice: { type: "function", function: { name: "get_weather" } }, max_tokens: 800, tools: [{ type: "function", function: { name: "get_weather", parse: JSON.parse, function: (a) => { called += 1; return `22C in ${a.city}`; }, parameters } }] });
  await run.done();
  assert.equal(called, 1);
  const schema = { type: "object", properties: { name: { type: "string", maxLength: 20 } }, required: ["name"], additionalProperties: false };
  const typed = await client.chat.completions.stream({ model, messages, max_tokens: 400, response_format: { type: "json_schema", json_schema: { name: "c", strict: true, schema } } }).finalChatCompletion();
  assert.equal(typeof JSON.parse(typed.choices[0].message.content).name, "string");
}
