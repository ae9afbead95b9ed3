"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const plots = [...document.querySelectorAll(".plot")];
  const specs = new Map(plots.map((plot) => [plot, JSON.parse(document.getElementById(plot.dataset.spec).textContent)]));
  let printing = false;
  let chosen = new Set();

  const themed = (layout) => {
    const isDark = dark.matches && !printing;
    const [ink, grid, raised] = isDark ? ["#e3e7ec", "#323a44", "#1c2229"] : ["#1b1f24", "#e3e7ec", "#ffffff"];
    const result = structuredClone(layout);
    result.font = { ...result.font, color: ink };
    result.hoverlabel = { ...result.hoverlabel, bgcolor: raised, bordercolor: grid, font: { color: ink } };
    const small = narrow.matches && !printing;
    if (small) result.font.size = 11;
    for (const name of Object.keys(result)) {
      if (/^[xy]axis\d*$/.test(name)) {
        result[name] = { ...result[name], gridcolor: grid, linecolor: grid };
        if (small && name[0] === "y" && result.meta && result.meta.names) result[name].showticklabels = false;
      }
    }
    if (small && result.meta && result.meta.names) { // names above their lines leave the width to the axes
      result.height = 150 + 36 * result.meta.rows;
      result.annotations = [...(result.annotations || []), ...result.meta.names.map((text) => (
        { text, x: 0, xref: "x domain", xanchor: "left", y: text, yref: "y", yanchor: "bottom", yshift: 4, showarrow: false }
      ))];
    }
    if (printing && result.meta && result.meta.rows) result.height = 120 + Math.min(22, Math.max(13, 640 / result.meta.rows)) * result.meta.rows;
    return result;
  };

  const emphasised = (data) => data.map((trace) => {
    if (!chosen.size || !trace.meta || trace.meta.group === undefined) return trace;
    const loud = chosen.has(trace.meta.name);
    return { ...trace, opacity: loud ? 1 : 0.25, line: { ...trace.line, width: loud ? 4 : 1.2, color: loud && trace.meta.grey ? "#e04fd0" : trace.line.color } };
  });

  const draw = () => Promise.all(plots.map((plot) => {
    const spec = specs.get(plot);
    return Plotly.react(plot, emphasised(spec.data), themed(spec.layout), { responsive: true, displaylogo: false, displayModeBar: false });
  })).then(() => { document.documentElement.dataset.drawn = String(plots.length); });

  const value = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value === "" ? NaN : Number(cell.dataset.value);
  };
  for (const table of document.querySelectorAll("table.sorts")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is missing stays last
        const order = typeof x === "number" ? (x === y ? 0 : x < y ? -1 : 1) : x.localeCompare(y);
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    }));
    for (const row of table.tBodies[0].rows) {
      if (row.dataset.group === undefined) continue;
      row.addEventListener("click", () => {
        row.classList.toggle("chosen");
        chosen = new Set([...document.querySelectorAll("tr.chosen")].map((each) => each.dataset.group));
        draw();
      });
    }
  }

  for (const box of document.querySelectorAll(".command")) {
    const button = box.querySelector("button");
    button.addEventListener("click", async () => {
      const code = box.querySelector("pre");
      getSelection().selectAllChildren(code);
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch { // a page from a file may not write to the clipboard; the text is selected
        button.textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
      }
    });
  }
  const measured = () => {
    for (const wide of document.querySelectorAll(".wide")) {
      const box = wide.querySelector(".scroll");
      wide.classList.toggle("cut", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    }
  };
  addEventListener("resize", measured);
  for (const each of document.querySelectorAll("details")) each.addEventListener("toggle", measured);
  for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", measured);
  measured();

  const printed = (now) => { printing = now; draw(); };
  addEventListener("beforeprint", () => printed(true));
  addEventListener("afterprint", () => printed(false));
  dark.addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  draw();
})();
