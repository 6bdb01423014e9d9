import type { RefObject, JSX } from "preact";
import type uPlot from "uplot";
import type { Source } from "./source";
import { ink } from "../theme";
import { IconButton } from "../ui/icons";
import { show, view } from "../url";
import { keysOf, type Panel } from "./panels";

interface ToolsProps {
  store: Source;
  panel: Panel;
  log: boolean;
  plot: RefObject<uPlot | null>;
}

export function ChartTools({ store, panel, log, plot }: ToolsProps): JSX.Element {
  const flip = (): void => {
    const { flipped } = view.value;
    show({
      flipped: flipped.includes(panel.key) ? flipped.filter((key) => key !== panel.key) : [...flipped, panel.key],
    });
  };
  const file = `${store.name}-${panel.key.replaceAll("/", "-")}`;
  const csv = async (): Promise<void> => {
    save(await store.csv(keysOf(panel)), `${file}.csv`);
  };
  return (
    <div class="tools" role="group" aria-label={`${panel.title}: tools`}>
      <IconButton name="log" label="Logarithmic axis" pressed={log} onClick={flip} testid="log-toggle" />
      <IconButton name="table" label="Download all points as CSV" onClick={() => void csv()} testid="csv" />
      <IconButton
        name="image"
        label="Download the chart as PNG"
        onClick={() => plot.current && png(plot.current, panel, `${file}.png`)}
        testid="png"
      />
    </div>
  );
}

function save(blob: Blob, name: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/** The canvas as it is drawn, marks and all, with its title above and on the page's background. */
function png(plot: uPlot, panel: Panel, name: string): void {
  const { canvas: drawn } = plot.ctx;
  const ratio = devicePixelRatio;
  const head = 28 * ratio;
  const sheet = document.createElement("canvas");
  sheet.width = drawn.width;
  sheet.height = drawn.height + head;
  const ctx = sheet.getContext("2d")!;
  ctx.fillStyle = ink("surface");
  ctx.fillRect(0, 0, sheet.width, sheet.height);
  ctx.drawImage(drawn, 0, head);
  ctx.font = `600 ${13 * ratio}px system-ui, sans-serif`;
  ctx.textBaseline = "middle";
  ctx.fillStyle = ink("text");
  ctx.fillText(panel.title, 10 * ratio, head / 2);
  let x = 10 * ratio + ctx.measureText(panel.title).width + 16 * ratio;
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  for (const line of panel.lines) {
    ctx.fillStyle = ink(`series-${line.color}`);
    ctx.fillText(line.label, x, head / 2);
    x += ctx.measureText(line.label).width + 12 * ratio;
  }
  sheet.toBlob((blob) => blob && save(blob, name));
}
