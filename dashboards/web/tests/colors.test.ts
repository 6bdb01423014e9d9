import { expect, test } from "vitest";
import css from "../src/styles/tokens.css?raw";

const colors = (name: string): [light: string, dark: string] => {
  const [, light = "", dark = ""] = new RegExp(`--${name}: light-dark\\((#\\w+), (#\\w+)\\)`).exec(css) ?? [];
  return [light, dark];
};

type Triple = [number, number, number];
type Matrix = [Triple, Triple, Triple];

/** Machado, Oliveira and Fernandes 2009, at full severity, on linear RGB. */
const VISION: Readonly<Record<string, Matrix>> = {
  usual: [
    [1, 0, 0],
    [0, 1, 0],
    [0, 0, 1],
  ],
  protanopia: [
    [0.152286, 1.052583, -0.204868],
    [0.114503, 0.786281, 0.099216],
    [-0.003882, -0.048116, 1.051998],
  ],
  deuteranopia: [
    [0.367322, 0.860646, -0.227968],
    [0.280085, 0.672501, 0.047413],
    [-0.01182, 0.04294, 0.968881],
  ],
  tritanopia: [
    [1.255528, -0.076749, -0.178779],
    [-0.078411, 0.930809, 0.147602],
    [0.004733, 0.691367, 0.3039],
  ],
};
const XYZ: Matrix = [
  [0.4124, 0.3576, 0.1805],
  [0.2126, 0.7152, 0.0722],
  [0.0193, 0.1192, 0.9505],
];
const WHITE: Triple = [0.9505, 1, 1.089];

const times = (m: Matrix, v: Triple): Triple => m.map((row) => row.reduce((sum, x, i) => sum + x * v[i]!, 0)) as Triple;
const linear = (hex: string): Triple =>
  [1, 3, 5].map((i) => {
    const c = parseInt(hex.slice(i, i + 2), 16) / 255;
    return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  }) as Triple;
const luminance = (hex: string): number => times(XYZ, linear(hex))[1];

function contrast(a: string, b: string): number {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

/** CIELAB; a distance of 2.3 is just noticed side by side. */
function lab(rgb: Triple): Triple {
  const [x, y, z] = times(XYZ, rgb.map((c) => Math.min(1, Math.max(0, c))) as Triple).map((c, i) => {
    const t = c / WHITE[i]!;
    return t > 0.008856 ? Math.cbrt(t) : 7.787 * t + 16 / 116;
  }) as Triple;
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const SERIES = [0, 1, 2, 3, 4, 5].map((i) => colors(`series-${i}`));
const THEMES = ["light", "dark"] as const;

test.each(THEMES.flatMap((theme) => Object.keys(VISION).map((vision) => [theme, vision] as const)))(
  "series in %s colours stay apart with %s",
  (theme, vision) => {
    const seen = SERIES.map((pair) => lab(times(VISION[vision]!, linear(pair[THEMES.indexOf(theme)]!))));
    const distances = seen.flatMap((a, i) => seen.slice(i + 1).map((b) => Math.hypot(...a.map((c, k) => c - b[k]!))));
    expect(Math.min(...distances)).toBeGreaterThan(18);
  },
);

test.each(THEMES)("series in %s colours stand out from their ground", (theme) => {
  const i = THEMES.indexOf(theme);
  for (const pair of SERIES) expect(contrast(pair[i]!, colors("surface")[i]!)).toBeGreaterThanOrEqual(3);
});

test.each(THEMES)("words in %s colours can be read", (theme) => {
  const i = THEMES.indexOf(theme);
  for (const word of ["text", "muted", "accent", "good", "warn", "bad"])
    for (const ground of ["bg", "surface", "sunken"])
      expect(contrast(colors(word)[i]!, colors(ground)[i]!), `${word} on ${ground}`).toBeGreaterThanOrEqual(4.5);
  for (const tone of ["good", "warn", "bad", "accent"])
    expect(contrast(colors(tone)[i]!, colors(`${tone}-soft`)[i]!), `${tone} on its ground`).toBeGreaterThanOrEqual(4.5);
});
