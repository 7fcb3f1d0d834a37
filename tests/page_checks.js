// Returns what is wrong with a page as it stands in a browser: texts, each naming what it is about.
(leastContrast) => {
  const problems = [];
  const named = (element) =>
    `${element.tagName.toLowerCase()}.${element.getAttribute("class") ?? ""} "${(element.textContent ?? "").trim().slice(0, 40)}"`;
  const root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) {
    problems.push(`the page is ${root.scrollWidth - root.clientWidth} pixels wider than the window`);
  }

  // What a parent hides must be within reach: by a scroll bar that the keyboard can move, too.
  for (const element of document.querySelectorAll("body, body *:not(svg *)")) {
    const style = getComputedStyle(element);
    const tooWide = element.scrollWidth > element.clientWidth + 1 && style.display !== "inline";
    if (tooWide && ["hidden", "clip"].includes(style.overflowX)) problems.push(`cut off: ${named(element)}`);
    if (tooWide && ["auto", "scroll"].includes(style.overflowX) && element.tabIndex < 0) {
      problems.push(`scrolls by mouse alone: ${named(element)}`);
    }
  }

  // A figure's text stands within the figure.
  for (const figure of document.querySelectorAll("svg")) {
    const box = figure.getBoundingClientRect();
    for (const text of figure.querySelectorAll("text")) {
      const own = text.getBoundingClientRect();
      const out = Math.max(box.left - own.left, own.right - box.right, box.top - own.top, own.bottom - box.bottom);
      if (out > 1) problems.push(`${Math.round(out)} pixels outside its figure: ${named(text)}`);
    }
  }

  // Contrast of text with what lies behind it (WCAG 2.2), for text that is no picture.
  const parsed = (colour) => {
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
    return { rgb: [red, green, blue], alpha };
  };
  const over = (front, back) => front.rgb.map((value, k) => value * front.alpha + back[k] * (1 - front.alpha));
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const canvas = getComputedStyle(root).colorScheme.includes("dark") ? [18, 18, 18] : [255, 255, 255];
  const behind = (element) =>
    element === null ? canvas : over(parsed(getComputedStyle(element).backgroundColor), behind(element.parentElement));
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest("svg, script, style, noscript")) continue;
    if (!element.checkVisibility()) continue;
    const back = behind(element);
    const shades = [over(parsed(getComputedStyle(element).color), back), back].map(luminance).sort((a, b) => b - a);
    const contrast = (shades[0] + 0.05) / (shades[1] + 0.05);
    if (contrast < leastContrast) problems.push(`contrast ${contrast.toFixed(1)}: ${named(element)}`);
  }

  for (const control of document.querySelectorAll("a[href], button, input, select, textarea, summary")) {
    const name = control.getAttribute("aria-label") ?? control.textContent.trim();
    if (!name) problems.push(`has no name to be read aloud: ${named(control)}`);
    if (control.tabIndex < 0) problems.push(`out of the keyboard's reach: ${named(control)}`);
  }
  return [...new Set(problems)];
}
