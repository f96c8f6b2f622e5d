// Shows Swagger UI. "Execute" sends the examples as they are, with three replacements: ids and
// tokens of the examples become those of the last answer that had such a field, and the example of
// an idempotency key becomes a new key. A login also authorises the calls that follow.
"use strict";

const EXAMPLE_KEY = "order-2026-0001";
// What stands in an example, by the field's name; and what an answer had in that field.
const inExamples = new Map();
const inAnswers = new Map();

function eachText(value, visit, name = "") {
  if (Array.isArray(value)) value.forEach((item) => eachText(item, visit, name));
  else if (value && typeof value === "object")
    Object.entries(value).forEach(([key, item]) => eachText(item, visit, key));
  else if (typeof value === "string" && /(Id|Token)$/.test(name)) visit(name, value);
}

function remember(table) {
  return (name, value) => value && !table.has(name) && table.set(name, value);
}

function replaced(text) {
  for (const [name, value] of inAnswers) {
    const example = inExamples.get(name);
    if (example && example.length > 3) text = text.replaceAll(example, value);
  }
  return text.replaceAll(EXAMPLE_KEY, crypto.randomUUID());
}

function learnExamples(document) {
  for (const example of Object.values(document.components.examples))
    eachText(example.value, remember(inExamples));
}

function learnAnswer(answer) {
  const names = new Map();
  eachText(answer, remember(names));
  names.forEach((value, name) => inAnswers.set(name, value));
  if (answer.accessToken) window.ui.preauthorizeApiKey("bearerAuth", answer.accessToken);
}

window.ui = SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  docExpansion: "none",
  filter: true,
  persistAuthorization: false,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  validatorUrl: null,
  queryConfigEnabled: false,
  requestInterceptor: (request) => {
    if (request.loadSpec) return request;
    request.url = replaced(request.url);
    if (typeof request.body === "string") request.body = replaced(request.body);
    for (const [name, value] of Object.entries(request.headers))
      if (name.toLowerCase() === "idempotency-key") request.headers[name] = replaced(value);
    return request;
  },
  responseInterceptor: (response) => {
    try {
      const body = JSON.parse(response.text || response.data);
      if (new URL(response.url).pathname === "/openapi.json") learnExamples(body);
      else if (response.ok) learnAnswer(body);
    } catch {
      // Not JSON.
    }
    return response;
  },
});
