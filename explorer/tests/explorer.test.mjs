// The page in the system's Chromium. EXPLORER_PAGES is a folder of pages that tests/publish/test_explorer_page.py makes.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const PAGES = process.env.EXPLORER_PAGES;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const VIEWS = ["study", "blocks", "bits", "benchmark", "trajectories", "refiner"];
const SCREENS = {
  light: { viewport: { width: 1280, height: 900 }, colorScheme: "light" },
  dark: { viewport: { width: 1280, height: 900 }, colorScheme: "dark" },
  phone: { viewport: { width: 390, height: 844 }, colorScheme: "light" },
};
let browser;

before(async () => {
  browser = await chromium.launch({ executablePath: process.env.EXPLORER_BROWSER, args: ["--no-sandbox", "--enable-unsafe-swiftshader"] });
});
after(() => browser?.close());

/** Open a page at a fragment; whatever it complains of, asks for or pops up is in `faults`. */
async function open(name, fragment = "", screen = SCREENS.light) {
  const context = await browser.newContext(screen);
  const page = await context.newPage();
  const url = pathToFileURL(`${PAGES}/${name}.html`).href;
  const faults = [];
  page.on("console", (message) => message.type() === "error" && faults.push(message.text()));
  page.on("pageerror", (error) => faults.push(String(error.stack ?? error)));
  page.on("dialog", (dialog) => (faults.push(`dialog ${dialog.message()}`), dialog.dismiss()));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !/^(data|blob):/.test(request.url())) faults.push(`request ${request.url()}`);
  });
  await page.goto(`${url}#${fragment}`);
  await page.waitForSelector("html[data-ready] main h1");
  await settled(page);
  return { page, faults, context };
}

/** Until charts are drawn: their places have been measured, and two frames have passed. */
const settled = (page) => page.evaluate(() => new Promise((done) => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 80)));
const at = (page) => page.evaluate(() => Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
const slide = (page, label, value) =>
  page.getByRole("slider", { name: label }).evaluate((input, v) => {
    input.value = v;
    input.dispatchEvent(new Event("input", { bubbles: true }));
  }, String(value));

for (const [name, screen] of Object.entries(SCREENS)) {
  test(`${name}: every view is drawn, asks for nothing, fits its width and is accessible`, async () => {
    for (const view of VIEWS) {
      const { page, faults, context } = await open("study", `view=${view}`, screen);
      assert.ok((await page.locator("main section").count()) >= 2, view);
      const [wide, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
      assert.ok(wide <= width, `${view} is ${wide} pixels wide on a screen of ${width}`);
      await page.evaluate(AXE);
      const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
      const serious = violations.filter((v) => ["serious", "critical"].includes(v.impact));
      assert.deepEqual(serious.map((v) => `${view}: ${v.id} ${v.nodes.map((n) => n.html).slice(0, 3)}`), []);
      assert.deepEqual(faults, [], view);
      await context.close();
    }
  });
}

test("every view opens with what its stages answer", async () => {
  const { page, faults, context } = await open("study", "view=study");
  const rows = await page.evaluate(() => JSON.parse(document.getElementById("study").textContent).tables.answers.rows);
  const told = [];
  for (const view of VIEWS) {
    await page.evaluate((hash) => (location.hash = hash), `view=${view}`);
    await settled(page);
    told.push(...(await page.locator(".answers h2").allTextContents()));
  }
  assert.equal(told.length, rows);
  assert.equal(new Set(told).size, rows);
  assert.ok(told.every((question) => question.endsWith("?")));
  assert.deepEqual(faults, []);
  await context.close();
});

test("blocks: sliders, keys and hovering change the picture", async () => {
  const { page, faults, context } = await open("study", "view=blocks");
  const shown = () => page.locator(".stage img").first().getAttribute("data-name");
  const source = () => page.locator(".stage img").first().getAttribute("src");
  const [first, pixels] = [await shown(), await source()];
  await slide(page, "Step", 0);
  assert.notEqual(await shown(), first);
  assert.notEqual(await source(), pixels);
  await slide(page, "Block", 0);
  const corner = await shown();
  await page.locator(".strip").focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowDown");
  const moved = await shown();
  assert.notEqual(moved, corner);
  assert.match(moved, /\/1\/[^/]+$/);
  const ablated = () => page.locator(".stage figure").nth(2).locator("img").getAttribute("data-name");
  const own = await ablated();
  await page.locator(".strip button").last().hover();
  assert.notEqual(await ablated(), own);
  assert.equal(await shown(), moved, "hovering shows an ablation and selects nothing");
  assert.deepEqual(faults, []);
  await context.close();
});

test("bits: the plan in the page is the integer program's", async () => {
  const { page, faults, context } = await open("study", "view=bits");
  const plans = await page.evaluate(() => JSON.parse(document.getElementById("study").textContent).plans.filter((plan) => !plan.formats));
  let seen = 0;
  for (const plan of plans) {
    for (const point of plan.frontier) {
      await page.evaluate((hash) => (location.hash = hash), `view=bits&model=${plan.model}&metric=${plan.metric}&budget=${point.nominal_bytes}`);
      await settled(page);
      const value = plan.metric.endsWith("_db") ? -10 * Math.log10(point.predicted) : Math.sqrt(point.predicted);
      const told = Number(await page.locator("#predicted").textContent());
      assert.ok(Math.abs(told - value) <= 0.0051 * value, `${plan.model} at ${point.nominal_bytes}: ${told}, the program says ${value}`);
      seen++;
    }
  }
  assert.ok(seen > 10);
  const size = await page.locator("#chosen-size").textContent();
  await page.getByRole("slider", { name: "Budget" }).focus();
  await page.keyboard.press("Home");
  await settled(page);
  assert.notEqual(await page.locator("#chosen-size").textContent(), size);
  assert.deepEqual(faults, []);
  await context.close();
});

test("benchmark: filters filter, a point's pictures follow it", async () => {
  const { page, faults, context } = await open("study", "view=benchmark");
  const names = () => page.locator(".card").first().locator(".chart svg text").allTextContents();
  const count = async () => Number((await page.locator(".card .caption").first().textContent()).match(/^(\d+) runs/)[1]);
  const all = await count();
  assert.ok(all >= 3 && (await names()).some((t) => t.includes("int8-weight-only")));
  await page.getByRole("checkbox", { name: "int8-weight-only" }).uncheck();
  await settled(page);
  assert.equal(await count(), all - 1);
  assert.ok(!(await names()).some((t) => t.includes("int8-weight-only")));
  await page.getByRole("checkbox", { name: "int8-weight-only" }).check();
  await page.getByRole("checkbox", { name: "simulated" }).uncheck();
  assert.ok((await count()) < all);
  await page.getByRole("checkbox", { name: "simulated" }).check();
  await page.locator(".tiles button").last().click();
  const run = (await at(page)).scheme;
  assert.match(await page.locator(".compare img").nth(1).getAttribute("data-name"), new RegExp(`/${run}/`));
  assert.match(await page.locator(".compare img").first().getAttribute("data-name"), /\/base-eager\//);
  assert.deepEqual(faults, []);
  await context.close();
});

test("benchmark: a noisy timing is marked and not on the front", async () => {
  const { page, faults, context } = await open("noisy", "view=benchmark&axis=latency");
  assert.match(await page.locator(".card .caption").first().textContent(), /1 timings were noisy/);
  assert.equal(await page.locator(".chart svg text", { hasText: "✕" }).count(), 1);
  assert.match(await page.locator("tr.noisy").textContent(), /noisy: the fan was on/);
  await page.getByRole("checkbox", { name: "noisy" }).uncheck();
  await settled(page);
  assert.equal(await page.locator(".chart svg text", { hasText: "✕" }).count(), 0);
  assert.deepEqual(faults, []);
  await context.close();
});

test("trajectories: a selection in one is one in all", async () => {
  const { page, faults, context } = await open("study", "view=trajectories");
  await page.waitForSelector("canvas[data-drawn]");
  const state = page.locator(".states button.text").last();
  await state.click();
  await settled(page);
  assert.equal((await at(page)).at, await state.getAttribute("data-state"));
  assert.equal(await page.locator("canvas").getAttribute("data-selected"), "1");
  assert.ok((await page.locator('.multiple svg circle[fill="#D55E00"], .multiple svg g[fill="#D55E00"] circle').count()) >= 1, "the state is on the drift curve");
  await page.locator(".states").focus();
  await page.keyboard.press("ArrowLeft");
  assert.notEqual((await at(page)).at, await state.getAttribute("data-state"));
  const choices = await page.locator(".field", { hasText: "Run" }).locator("option").evaluateAll((all) => all.map((o) => o.value));
  await page.locator(".field", { hasText: "Run" }).locator("select").selectOption(choices.at(-1));
  assert.equal(await page.locator(".run").first().getAttribute("data-run"), choices.at(-1));
  assert.deepEqual(faults, []);
  await context.close();
});

test("trajectories: 10^5 points are drawn; a press on the map selects a run, a cluster its states", async () => {
  const start = Date.now();
  const { page, faults, context } = await open("many", "view=trajectories");
  await page.waitForSelector("canvas[data-drawn]");
  console.log(`many points: drawn after ${Date.now() - start} ms`);
  const drawn = Number(await page.locator("canvas").getAttribute("data-drawn"));
  assert.ok(drawn >= 50_000, `${drawn} points`);
  assert.match(await page.locator("main").textContent(), /Sampled: clusters\.map: [\d,]+ of 1,000,000 rows/);
  const box = await page.locator("canvas").boundingBox();
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  await page.mouse.click(box.x + box.width / 2, box.y + box.height / 2);
  await page.waitForFunction(() => new URLSearchParams(location.hash.slice(1)).get("run"));
  const run = (await at(page)).run;
  assert.equal(await page.locator("canvas").getAttribute("data-selected"), "1");
  await page.locator(".legend button").first().click();
  await settled(page);
  assert.ok(Number(await page.locator("canvas").getAttribute("data-selected")) > 1000);
  assert.equal((await at(page)).run, run);
  assert.deepEqual(faults, []);
  await context.close();
});

test("refiner: a sample's pictures can be compared with its truth", async () => {
  const { page, faults, context } = await open("refiner", "view=refiner");
  assert.match(await page.locator("main").textContent(), /n = 40 held-out samples.*better than the interpolation of the same samples by 0\.1/);
  await page.locator(".triple").last().click();
  await page.locator(".field", { hasText: "Compare with" }).locator("select").selectOption("truth");
  const names = await page.locator(".compare img").evaluateAll((images) => images.map((i) => i.dataset.name));
  assert.deepEqual(names.map((name) => name.split("/").at(-1)), ["truth", "refined"]);
  assert.equal(names[0].split("/").at(-2), (await at(page)).sample);
  const level = async () => (await page.locator(".compare img").first().getAttribute("data-name")).split("/")[2];
  assert.equal(await level(), "2", "the fewest known parts come first");
  await slide(page, "Known", 0);
  assert.equal(await level(), "1");
  await page.getByRole("button", { name: "Compare interpolated at level 2" }).click();
  assert.deepEqual([await level(), (await at(page)).against], ["2", "interpolated"]);
  assert.deepEqual(faults, []);
  await context.close();
});

test("study: the search finds prompts and captions, and leads to them", async () => {
  const { page, faults, context } = await open("study", "view=blocks");
  await page.keyboard.press("/");
  await page.keyboard.type("red ri");
  await settled(page);
  const hits = page.locator(".hits li");
  assert.ok((await hits.count()) >= 1);
  assert.match(await hits.first().textContent(), /red ring/);
  await hits.locator("a").first().click();
  await settled(page);
  assert.notEqual((await at(page)).view, "study");
  assert.deepEqual(faults, []);
  await context.close();
});

test("the address restores what was seen", async () => {
  const { page, context } = await open("study", "view=blocks");
  await slide(page, "Step", 1);
  await slide(page, "Block", 1);
  await page.keyboard.press("t");
  const [hash, seen] = [await page.evaluate(() => location.hash.slice(1)), await page.locator(".stage").innerHTML()];
  await context.close();
  const again = await open("study", hash);
  assert.equal(await again.page.locator(".stage").innerHTML(), seen);
  assert.equal(await again.page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await again.page.keyboard.press("3");
  await settled(again.page);
  assert.match(await again.page.locator("h1").textContent(), /bits/);
  await again.page.goBack();
  await settled(again.page);
  assert.match(await again.page.locator("h1").textContent(), /block/);
  assert.deepEqual(again.faults, []);
  await again.context.close();
});

test("a study half done says what is missing and how to make it", async () => {
  for (const view of VIEWS) {
    const { page, faults, context } = await open("half", `view=${view}`);
    const told = await page.locator("main").textContent();
    if (view !== "study") assert.match(await page.locator(".missing").first().textContent(), /snakemake/, view);
    if (view === "study") assert.match(told, /\d+ stages are unfinished\. To make the rest of all of them/);
    if (view === "bits") assert.match(told, /of the stage sensitivity 0 of 2 outputs are there/i);
    if (view === "refiner") assert.match(told, /stages=\[refine\]/);
    assert.deepEqual(faults, [], view);
    await context.close();
  }
});

test("tables of another schema, and pictures that are missing, are told", async () => {
  const { page, faults, context } = await open("schema", "view=bits");
  assert.match(await page.locator(".problem").first().textContent(), /schema version 1, this ditscope reads/);
  await page.evaluate(() => (location.hash = "view=blocks&step=0"));
  await settled(page);
  await slide(page, "Block", 0);
  assert.match(await page.locator(".stage figure").first().textContent(), /not decoded/);
  assert.deepEqual(faults, []);
  await context.close();
});

test("hostile prompts are words", async () => {
  for (const view of ["study", "blocks", "trajectories"]) {
    const { page, faults, context } = await open("hostile", `view=${view}`);
    if (view === "study") {
      await page.locator("#search").fill("alert");
      await settled(page);
    }
    const told = await page.locator("main").textContent();
    assert.ok(told.includes("</script><img src=x onerror=alert(1)>"), view);
    assert.ok(told.includes("$x^$"), view);
    if (view === "study") {
      await page.locator("#search").fill("zzlong");
      await settled(page);
      const long = page.locator(".hits details");
      await long.locator("summary").click();
      assert.ok((await long.locator("span").last().textContent()).length >= 70_000);
    }
    assert.equal(await page.locator('img[src="x"]').count(), 0);
    const [wide, width] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
    assert.ok(wide <= width, `${view} is ${wide} pixels wide`);
    assert.deepEqual(faults, [], view);
    await context.close();
  }
});

test("a page without a study says so", async () => {
  for (const view of VIEWS) {
    const { page, faults, context } = await open("empty", `view=${view}`);
    assert.ok((await page.locator("main").textContent()).length > 40);
    assert.deepEqual(faults, [], view);
    await context.close();
  }
});
