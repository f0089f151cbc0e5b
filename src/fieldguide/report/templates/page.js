// Draws the page's charts, sorts and filters its tables. Needs vegaEmbed; loads nothing.
"use strict";
(() => {
  const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
  const announcements = document.getElementById("announcements");
  const say = (text) => { announcements.textContent = text; };

  document.documentElement.classList.add("js");

  // --- charts --------------------------------------------------------------------------------

  // Texts and lines take the page's colour, so that they follow light, dark and paper by themselves.
  const INK = "currentColor";
  const AXIS = {
    labelColor: INK, titleColor: INK, domainColor: INK, tickColor: INK,
    gridColor: INK, gridOpacity: 0.15, titleFontWeight: "normal",
    labelFontSize: 12, titleFontSize: 12,
  };
  const LEGEND = {
    labelColor: INK, titleColor: INK, titleFontWeight: "normal",
    labelFontSize: 12, titleFontSize: 12, symbolSize: 90, labelLimit: 220,
    symbolBaseFillColor: INK, symbolBaseStrokeColor: INK,
  };
  const CONFIG = {
    background: "transparent",
    font: "system-ui, sans-serif",
    view: { stroke: "transparent" },
    mark: { color: "#0072b2" },
    axis: AXIS,
    legend: LEGEND,
    header: { labelColor: INK, titleColor: INK, titleFontWeight: "normal" },
    title: { color: INK, subtitleColor: INK, fontWeight: "normal", anchor: "start" },
    text: { color: INK },
    rule: { color: INK },
    range: {
      category: ["#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9"],
      heatmap: { scheme: "viridis" },
      ramp: { scheme: "viridis" },
    },
  };
  // Above so many rows of data a canvas scrolls and zooms more smoothly than SVG (taste).
  const MANY_ROWS = 6000;

  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const drawn = new Map(); // figure -> promise of its view

  const rows = (spec) =>
    Object.values(spec.datasets ?? {}).reduce((sum, values) => sum + values.length, 0);

  const draw = (figure) => {
    if (!drawn.has(figure)) drawn.set(figure, embed(figure));
    return drawn.get(figure);
  };

  const embed = async (figure) => {
    const plot = figure.querySelector(".plot");
    const spec = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
    const renderer = rows(spec) > MANY_ROWS ? "canvas" : "svg";
    try {
      const result = await vegaEmbed(plot, spec, {
        ast: true, // expressions are interpreted: the page's policy allows no eval
        bind: figure.querySelector(".controls"),
        config: CONFIG,
        renderer,
        actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
        downloadFileName: figure.closest("section")?.id ?? "chart",
        tooltip: { theme: "page" },
      });
      figure.classList.add("drawn");
      reachable(plot);
      all(".enlarge", figure).forEach((group) => enlargeable(group, result.view));
      return result.view;
    } catch (error) {
      plot.textContent = `This chart could not be drawn: ${error.message}`;
      figure.classList.add("failed");
      throw error;
    }
  };

  // What is wider than the page scrolls, by keyboard too.
  const reachable = (box) => {
    if (box.scrollWidth > box.clientWidth + 1) box.tabIndex = 0;
  };

  // A chart of things in a row across and another one down, the first from -0.5 to 0.5: its buttons
  // and, where one of them has the focus, its keys change both ranges that are seen.
  const around = (factor) => ([low, high]) => {
    const half = (factor * (high - low)) / 2;
    return [(low + high) / 2 - half, (low + high) / 2 + half];
  };
  const along = (share) => ([low, high]) =>
    [low + share * (high - low), high + share * (high - low)];
  const stay = along(0);
  const STEP = 1.5; // of enlarging; a move is by a quarter (taste)
  const MOVES = new Map([ // across, down
    ["+", [around(1 / STEP), around(1 / STEP)]],
    ["-", [around(STEP), around(STEP)]],
    ["0", [around(1e9), around(1e9)]],
    ["ArrowLeft", [along(-0.25), stay]],
    ["ArrowRight", [along(0.25), stay]],
    ["ArrowUp", [stay, along(-0.25)]],
    ["ArrowDown", [stay, along(0.25)]],
  ]);

  // The nearest range that lies within the chart and is no narrower than one thing.
  const within = ([low, high], [first, last]) => {
    const width = Math.min(Math.max(high - low, 1), last - first);
    const start = Math.min(Math.max((low + high - width) / 2, first), last - width);
    return [start, start + width];
  };

  // Which of all are seen, if only in part; less than a rounding error is not.
  const spoken = ([low, high], [, last]) =>
    `${Math.floor(low + 0.5 + 1e-6) + 1} to ${Math.ceil(high - 0.5 - 1e-6) + 1} of ${last + 0.5}`;

  const enlargeable = (group, view) => {
    const signals = group.dataset.signals.split(" ");
    const seen = () => ["x", "y"].map((name) => view.scale(name).domain());
    const whole = seen();
    const move = (key) => {
      const ranges = seen().map((range, n) => within(MOVES.get(key)[n](range), whole[n]));
      ranges.forEach((range, n) => view.signal(signals[n], range));
      view.run();
      say(`shown: ${spoken(ranges[0], whole[0])} across, ${spoken(ranges[1], whole[1])} down`);
    };
    group.addEventListener("click", ({ target }) => {
      if (target.dataset.key) move(target.dataset.key);
    });
    group.addEventListener("keydown", (event) => {
      const key = event.key === "=" ? "+" : event.key; // the same key, without shift
      if (event.ctrlKey || event.metaKey || event.altKey || !MOVES.has(key)) return;
      event.preventDefault(); // or an arrow would scroll the page
      move(key);
    });
    group.hidden = false;
  };

  const redrawCanvases = async () => {
    for (const [figure, view] of drawn) {
      if (figure.querySelector("canvas")) await (await view).resize().runAsync();
    }
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCanvases);

  const figures = all("figure.chart");

  // Those near the window first, and the others when nothing else is to be done: paper wants all.
  const watch = () => {
    const observer = new IntersectionObserver((entries) => {
      for (const { isIntersecting, target } of entries) {
        if (isIntersecting) {
          observer.unobserve(target);
          draw(target);
        }
      }
    }, { rootMargin: "600px" });
    figures.forEach((figure) => observer.observe(figure));
  };

  const folded = (figure) => figure.closest("details:not([open])") !== null;
  const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 200));
  const drawNext = () => {
    const next = figures.find((figure) => !drawn.has(figure) && !folded(figure));
    if (next) draw(next).finally(() => idle(drawNext));
  };

  addEventListener("beforeprint", () => {
    all("main details:not([open], .vega-embed *)").forEach((details) => {
      details.open = true;
      details.dataset.opened = "for print";
    });
    figures.forEach(draw);
  });
  addEventListener("afterprint", () => {
    all("details[data-opened]").forEach((details) => {
      details.open = false;
      delete details.dataset.opened;
    });
  });

  // A link to something inside a closed part opens it.
  const openTarget = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let box = target; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
    if (target && location.hash) target.scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
  };
  addEventListener("hashchange", openTarget);

  // --- tables --------------------------------------------------------------------------------

  const names = new Intl.Collator(undefined, { numeric: true });

  // A number where the cell holds or begins with one, else its text.
  const key = (cell) => {
    const text = (cell?.dataset.sort ?? cell?.textContent ?? "").trim();
    const number = Number.parseFloat(text.replace(/[, \u202f]/g, ""));
    const numeric = /^[-+−]?[\d.,\u202f]+(e[-+]?\d+)?\s*(%|[A-Za-z/µ]{0,9})?(\s|$)/.test(text);
    return { text, number: numeric ? number : NaN };
  };

  // Empty cells and dashes come last either way.
  const compare = (one, other, direction) => {
    const blank = (cell) => cell.text === "" || cell.text === "–";
    if (blank(one) || blank(other)) return blank(one) - blank(other);
    const numbers = !Number.isNaN(one.number) && !Number.isNaN(other.number);
    return direction * (numbers ? one.number - other.number : names.compare(one.text, other.text));
  };

  const sort = (table, heading, column) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    all("thead th", table).forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [key(row.cells[column]), row]);
    keyed.sort(([one], [other]) => compare(one, other, ascending ? 1 : -1));
    body.append(...keyed.map(([, row]) => row));
    say(`sorted by ${heading.textContent.trim()}, ${ascending ? "ascending" : "descending"}`);
  };

  const sortable = (table) => {
    const headings = [...(table.tHead?.rows[0]?.cells ?? [])];
    headings.forEach((heading, column) => {
      if (heading.textContent.trim() === "" || heading.classList.contains("unsortable")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sort(table, heading, column));
      heading.append(button);
    });
  };

  // The table that a filter names by aria-controls, or else the next one in its section.
  const filtered = (input) => {
    const named = document.getElementById(input.getAttribute("aria-controls") ?? "");
    const tables = all("table", input.closest("section") ?? document);
    const after = (table) => input.compareDocumentPosition(table) & Node.DOCUMENT_POSITION_FOLLOWING;
    return named ?? tables.find(after);
  };

  const filter = (input) => {
    const table = filtered(input);
    if (!table) return;
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of table.tBodies[0].rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      say(`${left} rows`);
    };
    input.addEventListener("input", apply);
    if (input.value) apply(); // kept by the browser when the page was loaded again
  };

  // --- texts to copy -------------------------------------------------------------------------

  const copyable = (button) => {
    const source = document.getElementById(button.dataset.copy);
    button.hidden = !navigator.clipboard;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(source.textContent);
        say("copied");
        button.textContent = "Copied";
      } catch { // the browser does not let a page from a file: select it instead
        getSelection().selectAllChildren(source);
        say("selected");
      }
    });
  };

  all("table.sortable").forEach(sortable);
  all("input.filter").forEach(filter);
  all("button[data-copy]").forEach(copyable);
  all(".scroll").forEach(reachable);
  watch();
  addEventListener("load", () => { idle(drawNext); openTarget(); });
})();
