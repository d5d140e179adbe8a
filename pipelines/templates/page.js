// What the plots' selection and the page's controls do.  Text of others is only ever textContent.
window.vqbankPage = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const joined = document.getElementById("pictures").textContent;
  const numbers = ({ low, step, u16 }) => {
    const bytes = Uint8Array.from(atob(u16), (letter) => letter.charCodeAt(0));
    const steps = new Uint16Array(bytes.buffer);
    return Float32Array.from(steps, (one) => (one === 65535 ? NaN : low + one * step));
  };
  const heads = data.heads.map((head) => ({
    label: head.label, predicted: numbers(head.predicted), mapped: numbers(head.mapped), curve: head.curve,
  }));
  const facts = Object.fromEntries(Object.entries(data.facts).map(([name, own]) => [name, { text: own.text, values: numbers(own) }]));
  const groups = data.groups && { names: data.groups.names, of: numbers(data.groups) };
  const starts = (lengths) => lengths.reduce((all, one) => (all.push(all[all.length - 1] + one), all), [0]);
  const pictureStarts = starts(data.picture_lengths);
  const motionStarts = starts(data.motion_counts);
  const motion = numbers(data.motion);
  const scores = data.scores && {
    starts: starts(data.scores.counts), values: numbers(data.scores), pooled: numbers(data.scores.pooled), worst: data.scores.worst,
  };
  const byId = (id) => document.getElementById(id);
  const made = (tag, text, attributes = {}) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    return element;
  };
  // Bokeh takes what stands between two of these for a formula.
  const words = (text) => text.replaceAll("$$", "$ $").replaceAll("\\[", "\\ [").replaceAll("\\(", "\\ (");
  let drawn;  // the models of the plots, once they are there
  let head = data.best;

  const picture = (row) => {
    const [start, stop] = [pictureStarts[row], pictureStarts[row + 1]];
    return start === stop ? "data:," : "data:image/jpeg;base64," + joined.slice(start, stop);
  };

  const numbersOf = (row) => {
    const table = made("table");
    table.append(made("caption", "Scores, and what is known of the file"));
    const body = made("tbody");
    const line = (name, value) => {
      const tr = made("tr");
      tr.append(made("th", name, { scope: "row" }), made("td", value, { class: "number" }));
      body.append(tr);
    };
    line(data.score_name, facts.mos.values[row].toFixed(3));
    for (const one of heads) {
      const own = one.mapped[row];
      line("predicted by " + one.label, Number.isNaN(own) ? "in no test part" : own.toFixed(3));
    }
    if (groups) line(data.grouped_by, groups.names[Math.round(groups.of[row])]);
    for (const [name, fact] of Object.entries(facts))
      if (name !== "mos" && !Number.isNaN(fact.values[row])) line(fact.text, fact.values[row].toFixed(2).replace(/\.?0+$/, ""));
    table.append(body);
    return table;
  };

  // One series as a picture, with its worst places and the level of the whole.
  const curve = (series, name, { end = "", worst = [], level = null } = {}) => {
    const known = level === null ? [...series] : [...series, level];
    const low = level === null ? 0 : Math.min(...known), span = Math.max(...known) - low || 1;
    const [width, height] = [600, 110], step = width / series.length;
    const at = (place) => (place + 0.5) * step, up = (value) => height - ((value - low) / span) * (height - 14);
    const drawn = (tag, attributes, text) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
      if (text !== undefined) element.textContent = text;
      return element;
    };
    const told = worst.map((place) => `second ${place}: ${series[place].toFixed(2)}`).join(", ");
    const svg = drawn("svg", {
      viewBox: `-4 -6 ${width + 8} ${height + 30}`, role: "img",
      "aria-label": `${name} over time, ${Math.min(...series).toFixed(2)} to ${Math.max(...series).toFixed(2)}` + (told && `; worst: ${told}`),
    });
    svg.append(drawn("polyline", {
      points: Array.from(series, (value, place) => `${at(place).toFixed(1)},${up(value).toFixed(1)}`).join(" "),
      fill: "none", stroke: "#22262b", "stroke-width": 2,
    }));
    if (level !== null) svg.append(drawn("line", { x1: 0, x2: width, y1: up(level), y2: up(level), stroke: "#4d5660", "stroke-dasharray": "6 4" }));
    for (const place of worst) {
      const [x, y] = [at(place), up(series[place])];
      svg.append(drawn("polygon", { points: `${x - 6},${y - 12} ${x + 6},${y - 12} ${x},${y - 2}`, fill: "#9c1c14" }));
    }
    svg.append(drawn("text", { x: 0, y: height + 18 }, `${name}, from 0 s`), drawn("text", { x: width, y: height + 18, "text-anchor": "end" }, end));
    return svg;
  };

  const timeLine = (row) => {
    const both = made("div"), seconds = facts.seconds ? facts.seconds.values[row] : NaN;
    const end = Number.isNaN(seconds) ? "" : `${seconds.toFixed(1)} s`;
    if (scores) {
      const own = scores.values.slice(scores.starts[row], scores.starts[row + 1]);
      both.append(curve(own, "predicted score", { end, worst: scores.worst[row], level: scores.pooled[row] }));
    }
    const changes = motion.slice(motionStarts[row], motionStarts[row + 1]);
    if (changes.length > 1) both.append(curve(changes, "frame difference", { end }));
    if (!both.childElementCount) both.append(made("p", "No time line is banked of this video.", { class: "quiet" }));
    return both;
  };

  const show = (indices) => {
    const place = byId("video");
    if (!indices.length) {
      place.replaceChildren(made("p", "No video is selected: tap a point, or find one by its id."));
      return;
    }
    const ids = drawn.source.get_column("id"), row = indices[0];
    const left = made("div"), right = made("div");
    if (data.picture_lengths[row]) left.append(made("img", undefined, { id: "picture", src: picture(row), alt: "A frame of " + ids[row] }));
    else left.append(made("p", "No picture of this video is in the page.", { class: "quiet" }));
    right.append(made("h3", ids[row], { class: "id" }), numbersOf(row), timeLine(row));
    const both = made("div", undefined, { class: "chosen" });
    both.append(left, right);
    place.replaceChildren(both);
    if (indices.length > 1) {
      const residuals = indices.map((one) => heads[head].mapped[one] - facts.mos.values[one]).filter((one) => !Number.isNaN(one));
      const mean = residuals.reduce((sum, one) => sum + one, 0) / residuals.length;
      place.prepend(made("p", `${indices.length} videos are selected, of which this is the first; mean residual ${mean.toFixed(3)}.`));
    }
  };

  const select = (rows) => { drawn.source.selected.indices = rows; };

  const redraw = () => {
    const { source, curve } = drawn, own = heads[head], fact = facts[byId("fact").value];
    const residual = own.mapped.map((value, row) => value - facts.mos.values[row]);
    const before = Object.fromEntries(source.columns().map((name) => [name, source.get_column(name)]));
    source.data = { ...before, predicted: own.predicted, mapped: own.mapped, residual, fact: fact.values };
    curve.data = { x: own.curve[0], y: own.curve[1] };
    drawn.scatter.below[0].axis_label = words("predicted by " + own.label);
    drawn.residuals.below[0].axis_label = words(byId("fact").value === "mos" ? data.score_name : fact.text);
  };

  const ready = (models) => {
    drawn = models;
    byId("head").addEventListener("change", (event) => { head = Number(event.target.value); redraw(); show(drawn.source.selected.indices); });
    byId("fact").addEventListener("change", redraw);
    byId("group")?.addEventListener("change", (event) => {
      const wanted = groups.names.indexOf(event.target.value), rows = [];
      groups.of.forEach((own, row) => { if (Math.round(own) === wanted) rows.push(row); });
      select(event.target.selectedIndex === 0 ? [] : rows);
    });
    byId("clear").addEventListener("click", () => select([]));
    byId("find").addEventListener("submit", (event) => {
      event.preventDefault();
      const text = byId("id").value.trim().toLowerCase();
      if (!text) return;
      const ids = Array.from(drawn.source.get_column("id")), after = (drawn.source.selected.indices[0] ?? -1) + 1;
      const order = [...ids.keys()].map((at) => (at + after) % ids.length);
      const found = order.find((row) => ids[row].toLowerCase().includes(text));
      if (found === undefined) byId("video").replaceChildren(made("p", "No id has this in it."));
      else if (drawn.source.selected.indices[0] === found) show([found]);
      else select([found]);
    });
    for (const button of document.querySelectorAll("button[data-row]"))
      button.addEventListener("click", () => { select([Number(button.dataset.row)]); byId("h-video").scrollIntoView(); });
    document.documentElement.dataset.ready = "yes";
  };

  return { ready, select: show, picture };
})();
