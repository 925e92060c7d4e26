// A browser without a window, that notes what a page should not do.

import { writeFile } from "node:fs/promises";
import puppeteer from "puppeteer-core";

// What was checked, by name; what pages complained of; where they asked that is not theirs.
export const checks = {};
export const check = (name, passed) => {
  checks[name] = Boolean(passed);
};
export const faults = [];
export const strangers = [];

export const launch = (executablePath) =>
  puppeteer.launch({
    executablePath,
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--no-proxy-server", "--disable-background-networking"],
  });

// Opens a page. The browser itself reports what is refused with one of the statuses in `refused`.
export async function open(browser, url, { features, viewport, refused }) {
  const page = await browser.newPage();
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("console", (message) => {
    const expected = refused.some((status) => message.text().includes(String(status)));
    if (message.type() === "error" && !expected) faults.push(message.text());
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) strangers.push(request.url());
  });
  await page.emulateMediaFeatures(Object.entries(features).map(([name, value]) => ({ name, value })));
  await page.setViewport(viewport);
  await page.goto(url, { waitUntil: "load" });
  return page;
}

export const text = (page, selector) => page.$eval(selector, (element) => element.textContent);
export const until = (page, condition, ...args) => page.waitForFunction(condition, { timeout: 20000 }, ...args);
export const picture = async (page, path) => writeFile(path, await page.screenshot({ fullPage: true }));
