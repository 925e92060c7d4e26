"use strict";

// The page of the gateway: what runs, how the tunnel is, and what it costs. Everything comes from
// /belay/…, as it would for any other program.

const $ = (id) => document.getElementById(id);
const requests = new Map();
let token = sessionStorage.getItem("belay-token");
let shown = 0;

const headers = () => (token ? { authorization: `Bearer ${token}` } : {});

class Refused extends Error {}

async function get(path) {
  const answer = await fetch(path, { headers: headers(), cache: "no-store" });
  if (answer.status === 401) throw new Refused();
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer;
}

const json = async (path) => (await get(path)).json();

// Money has nine digits behind the point; cents are always shown, the rest as far as it is there.
function money(nano) {
  if (nano === null || nano === undefined) return "–";
  const sign = nano < 0 ? "-" : "";
  const text = String(Math.abs(nano)).padStart(10, "0");
  const rest = text.slice(-9).replace(/0+$/, "").padEnd(2, "0");
  return `${sign}$${text.slice(0, -9)}.${rest}`;
}

function time(ms) {
  if (ms === null || ms === undefined) return "–";
  if (ms > 0 && ms < 1) return `${ms.toFixed(2)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60000) return `${(ms / 1000).toFixed(1)} s`;
  return `${Math.floor(ms / 60000)} min ${Math.round((ms % 60000) / 1000)} s`;
}

const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en"));

const RUNNING = new Set(["waiting", "streaming", "interrupted"]);
const COLOURS = { complete: "good", interrupted: "warn", left: "warn", kept: "warn", incomplete: "bad", refused: "bad" };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function cell(name, className, text) {
  const made = element("td", className, text);
  made.dataset.name = name;
  return made;
}

function row(request) {
  const line = element("tr");
  line.append(cell("Time", "time", new Date(request.at_ms).toLocaleTimeString([], { hour12: false })));
  const model = cell("Model", "model", request.model || request.asked_model || "auto");
  const by = [request.provider, request.operation, request.caller.split(" ")[0]].filter(Boolean).join(" · ");
  model.append(element("small", "", by));
  if (request.prompt) model.title = request.prompt;
  line.append(model);
  const status = cell("State", "status");
  const state = RUNNING.has(request.state) && request.events ? `${request.state} ${count(request.events)}` : request.state;
  status.append(element("span", `state ${COLOURS[request.state] || ""}`, state));
  line.append(status);
  line.append(cell("in", "n", count(request.input_tokens)));
  line.append(cell("out", "n", count(request.output_tokens)));
  line.append(cell("cost", "n", request.cost_nano_usd === null ? "–" : money(request.cost_nano_usd) + (request.estimated ? " est." : "")));
  const first = request.first_event_us === null ? null : request.first_event_us / 1000;
  line.append(cell("first", "n", time(first)));
  line.append(cell("total", "n", time(request.total_ms)));
  const timing = element("td", "timing");
  const bar = element("div", "bar");
  const longest = Math.max(1, ...[...requests.values()].map((one) => one.total_ms));
  const wait = element("i");
  wait.style.width = `${((first ?? request.total_ms) / longest) * 100}%`;
  const flow = element("b");
  flow.style.width = `${(Math.max(0, request.total_ms - (first ?? request.total_ms)) / longest) * 100}%`;
  bar.append(wait, flow);
  timing.append(bar);
  timing.title = `first event after ${time(first)}, ended after ${time(request.total_ms)}`;
  line.append(timing);
  if (request.error && request.state !== "complete") model.append(element("span", "why", request.error));
  return line;
}

function draw() {
  const newest = [...requests.values()].sort((a, b) => b.at_ms - a.at_ms).slice(0, 200);
  for (const id of requests.keys()) if (!newest.some((one) => one.id === id)) requests.delete(id);
  $("requests").replaceChildren(...newest.map(row));
  $("empty").hidden = newest.length > 0;
  $("requests").closest("table").hidden = newest.length === 0;
  $("running").textContent = newest.filter((one) => RUNNING.has(one.state)).length;
  const firsts = newest.map((one) => one.first_event_us).filter((us) => us !== null).sort((a, b) => a - b);
  $("first-token").textContent = firsts.length ? `first event: half within ${time(firsts[firsts.length >> 1] / 1000)}` : "";
}

// Drawn once a frame, however much has changed.
let drawing = false;
function redraw() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    draw();
  });
}

function tunnel(status) {
  const now = status.tunnel;
  const line = $("tunnel");
  line.className = `tunnel ${now.phase === "up" ? "up" : now.phase === "refused" ? "down" : ""}`;
  const trip = now.round_trip_us ? `, round trip ${time(now.round_trip_us / 1000)}` : "";
  const words = {
    up: () => `up over ${now.path.toUpperCase()} to ${now.remote}${trip}`,
    connecting: () => "connecting",
    waiting: () => `next attempt in ${time(now.for_ms)}: ${now.reason}`,
    refused: () => `refused: ${now.code}`,
    closed: () => "closed",
  };
  $("tunnel-text").textContent = `Tunnel ${(words[now.phase] || (() => now.phase))()}`;
  const reconnects = now.reconnects === 1 ? "1 reconnect" : `${now.reconnects} reconnects`;
  $("about").textContent = `${status.device} of ${status.tenant} · belay ${status.gateway.version} on ${status.gateway.listen} · ${reconnects}`;
}

// Money is asked for after a request has ended, at most once a second.
let asking;
function askMoney() {
  if (asking) return;
  asking = setTimeout(async () => {
    asking = undefined;
    try {
      const [balance, usage] = await Promise.all([json("/belay/balance"), json("/belay/usage?period=day&by=model")]);
      $("balance").textContent = money(balance.balance_nano_usd + balance.credits_nano_usd);
      $("held").textContent = balance.held_nano_usd ? `${money(balance.held_nano_usd)} held` : "";
      $("today").textContent = money(usage.total.cost_nano_usd);
      $("today-requests").textContent = usage.total.requests === 1 ? "1 request" : `${count(usage.total.requests)} requests`;
    } catch (error) {
      if (error instanceof Refused) return login();
      $("held").textContent = "the relay does not answer";
    }
  }, shown++ ? 1000 : 0);
}

// How many events came in each of the last sixty seconds.
const flow = new Array(60).fill(0);
function flowed(before, after) {
  flow[flow.length - 1] += Math.max(0, after.events - (before ? before.events : 0));
}

setInterval(() => {
  $("rate").textContent = count(flow[flow.length - 1]);
  const most = Math.max(10, ...flow);
  const points = flow.map((events, second) => `${(second / (flow.length - 1)) * 240},${39 - (events / most) * 37}`);
  $("flow-line").setAttribute("d", `M${points.join("L")}`);
  $("flow-area").setAttribute("d", `M0,40L${points.join("L")}L240,40Z`);
  flow.shift();
  flow.push(0);
  if ([...requests.values()].some((one) => RUNNING.has(one.state))) redraw();
}, 1000);

async function list() {
  const found = await json("/belay/requests");
  requests.clear();
  for (const request of found.requests) requests.set(request.id, request);
  redraw();
}

function heard(name, data) {
  if (name === "status") return tunnel(JSON.parse(data));
  if (name === "missed") return list();
  if (name !== "request") return undefined;
  const request = JSON.parse(data);
  flowed(requests.get(request.id), request);
  requests.set(request.id, request);
  redraw();
  return RUNNING.has(request.state) ? undefined : askMoney();
}

// Not EventSource: it cannot carry a token.
async function follow() {
  const reader = (await get("/belay/events")).body.pipeThrough(new TextDecoderStream()).getReader();
  await list();
  askMoney();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the gateway has ended");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const field = (name) => event.split("\n").find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      if (field("data")) await heard(field("event"), field("data"));
    }
  }
}

function login(wrong) {
  $("login").hidden = false;
  $("main").hidden = true;
  $("login-error").hidden = !wrong;
  $("tunnel-text").textContent = "the gateway wants its token";
  $("token").focus();
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("belay-token", token);
  $("login").hidden = true;
  $("main").hidden = false;
  start();
});

async function start() {
  for (;;) {
    try {
      await follow();
    } catch (error) {
      if (error instanceof Refused) return login(Boolean(token));
      $("tunnel").className = "tunnel down";
      $("tunnel-text").textContent = "The gateway does not answer; trying again";
      await new Promise((resolve) => setTimeout(resolve, 2000));
    }
  }
}

for (const here of document.querySelectorAll(".here")) here.textContent = location.origin;
start();
