// The gateway's page in a browser, with pictures. Prints one JSON object.
//
// Usage: node check.mjs CHROMIUM GATEWAY GUARDED TOKEN PICTURES. GUARDED is a gateway that wants TOKEN.

import { check, checks, faults, launch, open as opened, picture as pictured, strangers, text, until } from "./browser.mjs";

const [executablePath, gateway, guarded, token, pictures] = process.argv.slice(2);
const browser = await launch(executablePath);
const open = (url, features, viewport) => opened(browser, url, { features, viewport, refused: [401] });
const picture = (page, name) => pictured(page, `${pictures}/${name}.png`);

// Asks, and reads the answer to its end.
async function ask(base, model, words, more = {}) {
  const body = { model, stream: true, max_tokens: 500, messages: [{ role: "user", content: words }] };
  const answer = await fetch(`${base}/v1/chat/completions`, { method: "POST", body: JSON.stringify(body), headers: more });
  return answer.text();
}
const script = (fields) => JSON.stringify({ fake: fields });

const wide = { width: 1280, height: 800 };
const page = await open(gateway, { "prefers-color-scheme": "light" }, wide);
await until(page, () => document.getElementById("balance").textContent.startsWith("$"));
check("tunnel", (await text(page, "#tunnel-text")).startsWith("Tunnel up over QUIC"));
check("empty", await page.$eval("#empty", (element) => !element.hidden));
await picture(page, "empty");

await ask(gateway, "gpt", script({ tokens: 30, pace_ms: 5 }));
await ask(gateway, "gtp", "a model that there is not");
await ask(gateway, "gpt", script({ cut_after: 9 }));
const running = [
  ask(gateway, "gpt", script({ tokens: 300, pace_ms: 20 })),
  ask(gateway, "gpt", script({ tokens: 250, pace_ms: 25, first_token_ms: 1500 })),
];
await until(page, () => document.getElementById("running").textContent === "2");
await until(page, () => Number(document.getElementById("rate").textContent) > 20);
check("rows", (await page.$$("#requests tr")).length === 5);
const rows = await page.$$eval("#requests tr", (lines) => lines.map((line) => line.textContent));
check("running", rows.filter((row) => row.includes("streaming")).length >= 1);
check("refused", rows.some((row) => row.includes("refused") && row.includes("did you mean")));
check("incomplete", rows.some((row) => row.includes("incomplete")));
await picture(page, "light");
const dark = await open(gateway, { "prefers-color-scheme": "dark" }, wide);
await until(dark, () => document.querySelectorAll("#requests tr").length === 5);
await until(dark, () => document.getElementById("balance").textContent.startsWith("$"));
await picture(dark, "dark");
const phone = await open(gateway, { "prefers-color-scheme": "light" }, { width: 390, height: 844, isMobile: true, hasTouch: true });
await until(phone, () => document.querySelectorAll("#requests tr").length === 5);
await until(phone, () => document.getElementById("today").textContent.startsWith("$"));
check("phone", await phone.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth));
await picture(phone, "phone");
await Promise.all(running);
// A page in the background draws nothing.
await page.bringToFront();
await until(page, () => [...document.querySelectorAll("#requests .state")].filter((state) => state.textContent === "complete").length === 3);
await until(page, () => document.getElementById("running").textContent === "0");
check("cost", /^\$0\.00\d+$/.test(await text(page, "#today")));
await picture(page, "after");

const strange = await open(guarded, { "prefers-color-scheme": "light" }, wide);
await until(strange, () => !document.getElementById("login").hidden);
check("nothing without the token", !(await text(strange, "#about")));
await strange.type("#token", "wrong");
await strange.keyboard.press("Enter");
await until(strange, () => !document.getElementById("login-error").hidden);
await picture(strange, "token");
await strange.$eval("#token", (input) => (input.value = ""));
await strange.type("#token", token);
await strange.keyboard.press("Enter");
await until(strange, () => document.getElementById("balance").textContent.startsWith("$"));
check("with the token", await strange.$eval("#login", (form) => form.hidden));

check("no faults", faults.length === 0);
check("asks nobody else", strangers.length === 0);
await browser.close();
console.log(JSON.stringify({ checks, faults, strangers }));
