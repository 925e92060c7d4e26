"use strict";

// The operator's page: everything comes from the same addresses that the commands of belayd ask.

const $ = (id) => document.getElementById(id);
const DAY = 86400000;
const MOST = 200;
let token = sessionStorage.getItem("belayd-token");
let tenants = [];
let devices = [];
let tunnels = [];
let before;

class Refused extends Error {}

async function ask(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["content-type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  const answer = await fetch(path, { method, headers, cache: "no-store", body: body && JSON.stringify(body) });
  if (answer.status === 401) throw new Refused();
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `${path}: ${answer.status}`);
  return answer;
}
const json = async (path, body) => (await ask(path, body)).json();

// Money has nine digits behind the point; cents are always shown, the rest as far as it is there.
function money(nano) {
  const sign = nano < 0 ? "-" : "";
  const text = String(Math.abs(nano)).padStart(10, "0");
  return `${sign}$${text.slice(0, -9)}.${text.slice(-9).replace(/0+$/, "").padEnd(2, "0")}`;
}

// Dollars as they are typed, in nano-dollars, exactly; undefined: no amount.
function nano(text) {
  const found = /^\s*\$?(\d{1,7})(?:\.(\d{1,9}))?\s*$/.exec(text);
  if (!found) return undefined;
  const amount = Number(found[1]) * 1e9 + Number((found[2] || "").padEnd(9, "0"));
  return amount > 0 && Number.isSafeInteger(amount) ? amount : undefined;
}

const count = (number) => number.toLocaleString("en");
const some = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;
const when = (ms) => (ms ? new Date(ms).toISOString().slice(0, 16).replace("T", " ") : "never");

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}
function cell(name, className, text) {
  const made = element("td", className, text);
  if (name) made.dataset.name = name;
  return made;
}
function row(...cells) {
  const made = element("tr");
  made.append(...cells);
  return made;
}
function named(text, small) {
  const made = cell("", "", text);
  if (small) made.append(element("small", "", small));
  return made;
}

function drawStatus(status) {
  tunnels = status.tunnels;
  const words = { healthy: "healthy", degraded: "degraded", maintenance: "in maintenance" };
  const { state, reason } = status.state;
  const text = words[state] || state;
  $("state").className = `state-line ${text === "healthy" && !status.reload.error ? "up" : ""}`;
  const reload = status.reload.error ? "; the configuration that is written is not in force" : "";
  $("state-text").textContent = `belayd ${status.version} on ${status.listen}: ${text}${reason ? `, ${reason}` : ""}${reload}`;
  $("tunnels").textContent = count(tunnels.length);
  const by = (path) => tunnels.filter((one) => one.path === path).length;
  $("tunnels-by").textContent = `${by("quic")} over QUIC, ${by("tcp")} over TCP`;
  $("running").textContent = count(status.running_requests);
  $("waiting").textContent = `${some(status.waiting_answers, "answer")} waiting, ${some(status.open_tenants, "tenant")} open`;
  $("memory").textContent = `${(status.memory_bytes / 1048576).toFixed(1)} MiB`;
  const now = performance.now();
  if (before) {
    const rate = ((status.store_commits - before.commits) / (now - before.at)) * 1000;
    $("commits").textContent = `${rate.toFixed(1)} commits per second`;
  }
  before = { commits: status.store_commits, at: now };
  $("about").textContent = `authority ${status.authority.slice(0, 16)}${status.http ? ` · HTTP on ${status.http}` : ""}`;
}

function drawUsage(days, models, today) {
  const of = (day) => days.find((one) => one.name === new Date(day * DAY).toISOString().slice(0, 10));
  const all = Array.from({ length: 30 }, (_, back) => today - 29 + back);
  const costs = all.map((day) => of(day)?.cost_nano || 0);
  const most = Math.max(1, ...costs);
  const svg = "http://www.w3.org/2000/svg";
  const line = document.createElementNS(svg, "line");
  for (const [name, value] of Object.entries({ x1: 0, x2: 600, y1: 119.5, y2: 119.5 })) line.setAttribute(name, value);
  const bars = costs.map((cost, place) => {
    const bar = document.createElementNS(svg, "rect");
    const height = cost ? Math.max(2, (cost / most) * 112) : 0;
    for (const [name, value] of Object.entries({ x: place * 20 + 3, y: 119 - height, width: 14, height })) bar.setAttribute(name, value);
    const title = document.createElementNS(svg, "title");
    title.textContent = `${new Date(all[place] * DAY).toISOString().slice(0, 10)}: ${money(cost)}`;
    bar.append(title);
    return bar;
  });
  $("days").replaceChildren(line, ...bars);
  const sum = costs.reduce((a, b) => a + b, 0);
  const first = new Date(all[0] * DAY).toISOString().slice(0, 10);
  $("days-text").textContent = `from ${first} to today ${money(sum)} in all, at most ${money(most > 1 ? most : 0)} a day; what tenants have handed over by now`;
  const now = of(today);
  $("today").textContent = money(now?.cost_nano || 0);
  $("today-requests").textContent = some(now?.requests || 0, "request");
  const total = Math.max(1, models.reduce((a, one) => a + one.cost_nano, 0));
  models.sort((a, b) => b.cost_nano - a.cost_nano);
  $("models").replaceChildren(...models.slice(0, 20).map((one) => {
    const share = cell("", "share");
    const bar = element("span", "bar");
    bar.style.width = `${(one.cost_nano / total) * 100}%`;
    share.append(bar);
    return row(named(one.name), cell("requests", "n", count(one.requests)), cell("in", "n", count(one.input + one.cache_read + one.cache_write)),
      cell("out", "n", count(one.output)), cell("charged", "n", money(one.cost_nano)), share);
  }));
}

function act(text, label, deed) {
  const button = element("button", "quiet", text);
  button.setAttribute("aria-label", label);
  button.addEventListener("click", deed);
  return button;
}

function drawTenants() {
  const words = $("find").value.trim().toLowerCase();
  const found = tenants.filter((one) => `${one.id} ${one.label}`.toLowerCase().includes(words));
  $("tenants").replaceChildren(...found.slice(0, MOST).map((one) => {
    const acts = cell("", "acts");
    acts.append(act("Credit", `Credit ${one.id}`, () => credit(one)));
    acts.append(act(one.suspended ? "Resume" : "Suspend", `${one.suspended ? "Resume" : "Suspend"} ${one.id}`, () => suspend(one)));
    const held = one.held_nano_usd ? `${money(one.held_nano_usd)} (${one.open_holds})` : "–";
    return row(named(one.id, one.label), cell("tier", "", one.tier), cell("balance", `n ${one.balance_nano_usd < 0 ? "bad" : ""}`, money(one.balance_nano_usd)),
      cell("credits", "n", one.credits_nano_usd ? money(one.credits_nano_usd) : "–"), cell("held", "n", held),
      cell("charged", "n", money(one.charged_nano_usd)), cell("", one.suspended ? "bad" : "good", one.suspended ? "suspended" : "active"), acts);
  }));
  $("tenants-more").textContent = found.length > MOST ? `${count(found.length - MOST)} more; find them by name` : "";
}

function drawDevices() {
  const words = $("find").value.trim().toLowerCase();
  const live = (one) => tunnels.filter((tunnel) => tunnel.device === one.id);
  const found = devices.filter((one) => `${one.id} ${one.tenant} ${one.label}`.toLowerCase().includes(words));
  found.sort((a, b) => live(b).length - live(a).length || (b.last_seen_ms || 0) - (a.last_seen_ms || 0));
  $("devices").replaceChildren(...found.slice(0, MOST).map((one) => {
    const up = live(one);
    const acts = cell("", "acts");
    if (!one.revoked_ms) acts.append(act("Revoke", `Revoke ${one.id}`, () => revoke(one)));
    const tunnel = one.revoked_ms ? "revoked" : up.map((each) => `${each.path.toUpperCase()} from ${each.remote}`).join(", ") || "–";
    const trip = up.map((each) => each.round_trip_us).find((us) => us > 0);
    return row(named(one.id, one.label), cell("of", "", one.tenant), cell("", one.revoked_ms ? "bad" : up.length ? "good" : "", tunnel),
      cell("round trip", "n", trip ? `${(trip / 1000).toFixed(1)} ms` : "–"), cell("seen", "time", when(one.last_seen_ms)),
      cell("until", "time", when(one.expires_ms).slice(0, 10)), acts);
  }));
  $("devices-more").textContent = found.length > MOST ? `${count(found.length - MOST)} more; find them by name` : "";
}

// Lines of the text form of Prometheus, as far as this page needs them.
function samples(text, name) {
  const found = [];
  for (const line of text.split("\n")) {
    const parts = /^(\w+)(?:\{(.*)\})? (\S+)/.exec(line);
    if (!parts || parts[1] !== name) continue;
    const labels = Object.fromEntries([...(parts[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((one) => [one[1], one[2]]));
    found.push({ labels, value: Number(parts[3]) });
  }
  return found;
}

function drawProviders(text) {
  const calls = samples(text, "belay_provider_calls_total");
  const ill = samples(text, "belay_provider_ill").filter((one) => one.value > 0);
  const names = [...new Set(calls.map((one) => one.labels.provider))].sort();
  const sum = (list, provider) => list.filter((one) => one.labels.provider === provider).reduce((a, one) => a + one.value, 0);
  $("providers").replaceChildren(...names.map((name) => {
    const failed = calls.filter((one) => !["answered", "given_up"].includes(one.labels.result));
    const answers = sum(samples(text, "belay_provider_head_seconds_count"), name);
    const after = answers ? `${((sum(samples(text, "belay_provider_head_seconds_sum"), name) / answers) * 1000).toFixed(0)} ms` : "–";
    const sick = ill.filter((one) => one.labels.provider === name).map((one) => one.labels.model);
    return row(named(name), cell("calls", "n", count(sum(calls, name))), cell("failed", `n ${sum(failed, name) ? "warn" : ""}`, count(sum(failed, name))),
      cell("answers after", "n", after), cell("", sick.length ? "bad" : "good", sick.length ? `left alone: ${sick.join(", ")}` : "asked"));
  }));
}

function drawFindings(findings) {
  const words = { good: ["good", "ok"], warn: ["warn", "warn"], bad: ["bad", "bad"] };
  $("findings").replaceChildren(...findings.map((one) => {
    const found = cell("", "", one.found);
    if (one.remedy) found.append(element("small", "", one.remedy));
    return row(cell("", ...words[one.health]), cell("", "", one.what), found);
  }));
}

function drawErrors(lines) {
  $("no-errors").hidden = lines.length > 0;
  $("errors").closest("table").hidden = lines.length === 0;
  $("errors").replaceChildren(...lines.slice(0, 50).map((line) => {
    const what = cell("", "", line.message);
    const fields = line.fields.map(([name, value]) => `${name}=${value}`).join(" ");
    if (fields) what.append(element("small", "", fields));
    return row(cell("", "time", when(line.at_ms)), cell("", line.level === "ERROR" ? "bad" : "warn", line.level.toLowerCase()), what);
  }));
}

// One question at a time; what is asked for is done only after it was said once more.
let deed;
function confirm(title, text, yes, wantsAmount, run) {
  deed = run;
  $("ask-title").textContent = title;
  $("ask-text").textContent = text;
  $("ask-yes").textContent = yes;
  $("ask-amount-line").hidden = !wantsAmount;
  $("ask-amount").value = "";
  $("ask-note").value = "";
  $("ask-error").textContent = "";
  $("ask").showModal();
}
$("ask-no").addEventListener("click", () => $("ask").close());
$("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("ask-yes").disabled = true;
  try {
    await deed($("ask-note").value.trim());
    $("ask").close();
    await people();
  } catch (error) {
    if (error instanceof Refused) return login(true);
    $("ask-error").textContent = error.message;
  } finally {
    $("ask-yes").disabled = false;
  }
  return undefined;
});

function credit(one) {
  // The same name for every attempt at this question: money that has moved does not move again.
  const operation = `page-${crypto.randomUUID()}`;
  confirm(`Credit ${one.id}`, `It has ${money(one.balance_nano_usd)}.`, "Credit", true, (note) => {
    const amount = nano($("ask-amount").value);
    if (!amount) throw new Error("an amount in dollars, such as 20 or 0.50");
    const body = { what: "credit", amount_nano_usd: amount, operation, note: note || null };
    return json(`/tenants/${encodeURIComponent(one.id)}/money`, body);
  });
}
function suspend(one) {
  const [verb, text] = one.suspended
    ? ["Resume", "It may ask again."]
    : ["Suspend", "Its tunnels close within a second, and its requests end."];
  confirm(`${verb} ${one.id}`, text, verb, false, () => json(`/tenants/${encodeURIComponent(one.id)}/suspended`, { suspended: !one.suspended }));
}
function revoke(one) {
  const text = `${one.label || one.id} of ${one.tenant} is cut off within a second, and never comes back.`;
  confirm(`Revoke ${one.id}`, text, "Revoke", false, (why) => json(`/devices/${encodeURIComponent(one.id)}/revoke`, { why: why || "revoked by the operator" }));
}

async function people() {
  [tenants, devices] = await Promise.all([json("/tenants"), json("/devices")]);
  drawTenants();
  drawDevices();
}
async function slow() {
  const today = Math.floor(Date.now() / DAY);
  const usage = (by) => json(`/usage?from=${today - 29}&until=${today + 1}&by=${by}`);
  const [days, models] = await Promise.all([usage("day"), usage("model")]);
  drawUsage(days, models, today);
  await people();
}
async function quick() {
  const [status, text, lines] = await Promise.all([json("/status"), ask("/metrics").then((answer) => answer.text()), json("/errors")]);
  drawStatus(status);
  drawProviders(text);
  drawErrors(lines);
  drawDevices();
}
const look = async () => drawFindings(await json("/doctor"));

function login(wrong) {
  $("ask").close();
  $("login").hidden = false;
  $("main").hidden = true;
  $("login-error").hidden = !wrong;
  $("state-text").textContent = "the relay wants its token";
  $("token").focus();
}
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("belayd-token", token);
  $("login").hidden = true;
  $("main").hidden = false;
  start();
});
$("find").addEventListener("input", () => {
  drawTenants();
  drawDevices();
});
$("look").addEventListener("click", () => look().catch((error) => ($("state-text").textContent = error.message)));

const rest = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
async function start() {
  for (let round = 0; ; round += 1) {
    try {
      // Lists of tenants open every book, and are asked for seldom.
      if (round % 30 === 0) await slow();
      if (round === 0) look().catch(() => {});
      await quick();
    } catch (error) {
      if (error instanceof Refused) return login(Boolean(token));
      $("state").className = "state-line down";
      $("state-text").textContent = `The relay does not answer (${error.message}); trying again`;
    }
    await rest(document.hidden ? 10000 : 2000);
  }
}
start();
