"use strict";
// Draws every figure of the page, in the colours of the light or the dark scheme, and again when that changes.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 600px)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const buttons = [["toImage", "zoom2d", "pan2d", "resetScale2d"]];
  const config = { responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover", modeBarButtons: buttons };

  // A figure's own colours, one by one, as its dark scheme has them; colour scales are the same in both.
  const recoloured = (value, colours) => {
    if (typeof value === "string") return colours[value] ?? value;
    if (Array.isArray(value)) return value.map((item) => recoloured(item, colours));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [key, key === "colorscale" ? item : recoloured(item, colours)]),
    );
  };

  const arranged = ({ data, layout, colours }) => {
    const figure = recoloured({ data, layout }, dark.matches ? colours : {});
    const text = dark.matches ? "#e4e6ea" : "#1c1e21";
    const box = dark.matches ? "#2b3038" : "#eceef1";
    const edge = dark.matches ? "#5d6570" : "#b9bfc8";
    Object.assign(figure.layout, {
      font: { ...figure.layout.font, color: text },
      paper_bgcolor: "rgba(0,0,0,0)",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: edge, activecolor: text },
      dragmode: touch ? false : "zoom", // a finger that scrolls the page must not zoom the plot
    });
    for (const slider of figure.layout.sliders ?? []) {
      Object.assign(slider, { bgcolor: box, activebgcolor: edge, bordercolor: edge, tickcolor: edge });
    }
    if (narrow.matches) {
      figure.layout.margin = { ...figure.layout.margin, l: 48, r: 8 };
      if (figure.layout.sliders) figure.layout.showlegend = false; // the slider names the same lines
      for (const trace of figure.data) {
        if (trace.colorbar) Object.assign(trace.colorbar, { thickness: 8, xpad: 2, tickfont: { size: 9 } });
      }
    }
    return figure;
  };

  const draw = (element, given) => {
    const figure = arranged(given);
    const [slider] = element._fullLayout?.sliders ?? [];
    if (slider) { // drawn before: leave the slider where the reader has put it
      figure.layout.sliders[0].active = slider.active;
      figure.data.forEach((trace, k) => {
        Object.assign(trace, { visible: element.data[k].visible ?? true, opacity: element.data[k].opacity ?? 1 });
      });
    }
    return Plotly.react(element, figure.data, figure.layout, config);
  };

  for (const source of document.querySelectorAll("script.figure")) {
    const element = source.previousElementSibling;
    const given = JSON.parse(source.textContent);
    draw(element, given);
    for (const change of [dark, narrow]) change.addEventListener("change", () => draw(element, given));
  }
})();
