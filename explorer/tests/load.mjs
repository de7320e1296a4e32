// How long a page takes from its address to a drawn map, and a frame while it is moved: `node load.mjs PAGE ...`, JSON out.
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const browser = await chromium.launch({ executablePath: process.env.EXPLORER_BROWSER, args: ["--no-sandbox", "--enable-unsafe-swiftshader"] });
const seen = [];
for (const file of process.argv.slice(2)) {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const start = performance.now();
  await page.goto(`${pathToFileURL(file).href}#view=trajectories`);
  await page.waitForSelector("html[data-ready]");
  const ready = performance.now() - start;
  await page.waitForSelector("canvas[data-drawn]");
  const drawn = performance.now() - start;
  const points = Number(await page.locator("canvas").getAttribute("data-drawn"));
  const box = await page.locator("canvas").boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.evaluate(() => {
    window.frames_ = [];
    const tick = (t) => (window.frames_.push(t), requestAnimationFrame(tick));
    requestAnimationFrame(tick);
  });
  for (let i = 0; i < 15; i++) await page.mouse.wheel(0, i % 2 ? 40 : -40);
  const frames = await page.evaluate(() => window.frames_);
  const gaps = frames.slice(1).map((t, i) => t - frames[i]).sort((a, b) => a - b);
  seen.push({ file, points, ready_ms: ready, drawn_ms: drawn, frame_ms: gaps[Math.floor(gaps.length / 2)], slow_frame_ms: gaps[Math.floor(gaps.length * 0.95)] });
  await page.close();
}
await browser.close();
console.log(JSON.stringify(seen));
