// The operator's page in a browser, with pictures. Prints one JSON object.
//
// Usage: node admin.mjs CHROMIUM PAGE TOKEN PICTURES

import { check, checks, faults, launch, open as opened, picture as pictured, strangers, text, until } from "./browser.mjs";

const [executablePath, url, token, pictures] = process.argv.slice(2);
const browser = await launch(executablePath);
// A token, or an amount, is refused.
const open = (scheme, viewport) => opened(browser, url, { features: { "prefers-color-scheme": scheme }, viewport, refused: [400, 401] });
const picture = (page, name) => pictured(page, `${pictures}/admin-${name}.png`);
const press = (page, label) => page.$eval(`button[aria-label="${label}"]`, (button) => button.click());
async function enter(page, words) {
  await page.$eval("#token", (input) => (input.value = ""));
  await page.type("#token", words);
  await page.keyboard.press("Enter");
}
const loaded = (page) => until(page, () => document.querySelectorAll("#findings tr").length > 5 && document.querySelectorAll("#tenants tr").length === 2);

const wide = { width: 1280, height: 900 };
const page = await open("light", wide);
await until(page, () => !document.getElementById("login").hidden);
check("nothing without the token", !(await text(page, "#about")) && !(await text(page, "#tenants")));
await picture(page, "token");
await enter(page, "wrong");
await until(page, () => !document.getElementById("login-error").hidden);
await enter(page, token);
await loaded(page);
check("with the token", await page.$eval("#main", (main) => !main.hidden));
check("state", /^belayd [0-9.]+ on .*: healthy/.test(await text(page, "#state-text")));
check("tunnel", (await text(page, "#tunnels")) === "1" && (await text(page, "#tunnels-by")).startsWith("1 over QUIC"));
check("usage", /^\$0\.0+[1-9]/.test(await text(page, "#today")) && (await page.$$("#days rect")).length === 30);
check("model", (await text(page, "#models")).includes("demo/demo"));
check("tenants", /acmeAcme Inc.*\$4\.99/.test(await text(page, "#tenants")));
check("device", (await text(page, "#devices")).includes("QUIC from 127.0.0.1"));
check("provider", (await text(page, "#providers")).includes("demo"));
check("finding", (await text(page, "#findings")).includes("none was ever taken"));
check("error", (await text(page, "#errors")).includes("everything stays as it was"));
await picture(page, "light");

await page.type("#find", "glob");
check("found", (await page.$$("#tenants tr")).length === 1);
await page.$eval("#find", (input) => {
  input.value = "";
  input.dispatchEvent(new Event("input"));
});
// Nothing is done before it was said once more, and nothing that makes no sense.
await press(page, "Credit globex");
await until(page, () => document.getElementById("ask").open);
await picture(page, "credit");
await page.click("#ask-no");
check("cancelled", await page.$eval("#ask", (dialog) => !dialog.open));
await press(page, "Credit globex");
await page.type("#ask-amount", "12.3456789012");
await page.click("#ask-yes");
await until(page, () => document.getElementById("ask-error").textContent.includes("an amount in dollars"));
await page.$eval("#ask-amount", (input) => (input.value = ""));
await page.type("#ask-amount", "12.345678901");
await page.type("#ask-note", "invoice 7");
await page.click("#ask-yes");
await until(page, () => document.getElementById("tenants").textContent.includes("$14.345678901"));
await press(page, "Suspend globex");
await page.click("#ask-yes");
await until(page, () => document.querySelector('button[aria-label="Resume globex"]'));
await page.$eval("#devices", (body) => body.scrollIntoView());
const device = await page.$eval('#devices button[aria-label^="Revoke"]', (button) => button.getAttribute("aria-label"));
await press(page, device);
await page.type("#ask-note", "stolen");
await page.click("#ask-yes");
await until(page, () => document.getElementById("devices").textContent.includes("revoked"));
await until(page, () => document.getElementById("tunnels").textContent === "0");
check("done", true);

const dark = await open("dark", wide);
await until(dark, () => !document.getElementById("login").hidden);
await enter(dark, token);
await loaded(dark);
await picture(dark, "dark");
const phone = await open("light", { width: 390, height: 844, isMobile: true, hasTouch: true });
await until(phone, () => !document.getElementById("login").hidden);
await enter(phone, token);
await loaded(phone);
check("phone", await phone.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth));
await picture(phone, "phone");

check("no faults", faults.length === 0);
check("asks nobody else", strangers.length === 0);
await browser.close();
console.log(JSON.stringify({ checks, faults, strangers }));
