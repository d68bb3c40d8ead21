// Vercel's ai: text, stream; with STRUCTURED=1 an object and a forced tool.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const provider = createOpenAICompatible({ name: "deltart", baseURL: process.env.OPENAI_BASE_URL, apiKey: "x", includeUsage: true, supportsStructuredOutputs: true });
const model = provider("deltart-nano");
const prompt = 'Type "planet" backwards';
assert.equal((await generateText({ model, prompt, temperature: 0 })).text, "tenalp");
const stream = streamText({ model, prompt, temperature: 0 });
let text = "";
for await (const piece of stream.textStream) text += piece;
assert.equal(text, "tenalp");
assert.ok((await stream.usage).totalTokens > 0);
if (process.env.STRUCTURED) {
  const { object } = await generateObject({ model, prompt: "Paris", schema: z.object({ name: z.string().max(20) }), maxOutputTokens: 400 });
  assert.equal(typeof object.name, "string");
  const tools = { get_weather: tool({ description: "w", inputSchema: z.object({ city: z.string().max(20) }), execute: async () => "22C" }) };
  const called = await generateText({ model, prompt: "weather?", tools, toolChoice: "required", maxOutputTokens: 800 });
  assert.equal(called.toolResults[0].output, "22C");
}
