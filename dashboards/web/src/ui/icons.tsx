import type { JSX } from "preact";

const PATHS = {
  pause: "M6 4v8M10 4v8",
  play: "M5.5 3.5v9l7-4.5z",
  stop: "M4.5 4.5h7v7h-7z",
  decay: "M2 4h6c2.5 0 3 8.5 6 8.5",
  try: "M6.5 2.5h3m-2.5 0v4l-3.6 6a.7.7 0 0 0 .6 1h8a.7.7 0 0 0 .6-1L9 6.5v-4M5 10h6",
  save: "M8 2.5v7m0 0 3-3m-3 3-3-3M3 12.5h10",
  pin: "M6 2.5h4l-.5 4.5 2 2.5h-7l2-2.5zM8 9.5v4",
  plus: "M8 3v10M3 8h10",
  edit: "m3 13 .7-3L10.5 3.2a1 1 0 0 1 1.4 0l.9.9a1 1 0 0 1 0 1.4L6 12.3z",
  trash: "M3.5 4.5h9M6.5 4.5v-2h3v2m-5 0 .5 9h6l.5-9",
  sun: "M8 1.5v1.5M8 13v1.5M1.5 8H3m10 0h1.5M3.4 3.4l1 1m7.2 7.2 1 1m0-9.2-1 1m-7.2 7.2-1 1M11 8a3 3 0 1 1-6 0 3 3 0 0 1 6 0z",
  moon: "M13 9.5A5.5 5.5 0 0 1 6.5 3 5.5 5.5 0 1 0 13 9.5z",
  log: "M2.5 2.5v11h11M5 11c0-5 3-7 8-7.5",
  table: "M2.5 3.5h11v9h-11zM2.5 6.5h11M6.5 3.5v9",
  image: "M2.5 3.5h11v9h-11zm0 7 3-3 3 3 2-2 3 3M10.5 6h.01",
  reset: "M3 8a5 5 0 1 0 1.5-3.6M3 2.5v3h3",
  keys: "M1.5 4.5h13v7h-13zM4 7h.01M6.5 7h.01M9 7h.01M11.5 7h.01M4.5 9.5h7",
  compare: "M2.5 13V8.5M6 13V3M9.5 13V6.5M13 13V4.5",
  up: "m4 9.5 4-4 4 4",
  down: "m4 6.5 4 4 4-4",
  close: "m4 4 8 8m0-8-8 8",
  out: "M9.5 3h-6v10h6M7 8h7m0 0-2.5-2.5M14 8l-2.5 2.5",
} as const;

export type IconName = keyof typeof PATHS;

export const Icon = ({ name }: { name: IconName }): JSX.Element => (
  <svg class="icon" viewBox="0 0 16 16" aria-hidden="true">
    <path d={PATHS[name]} />
  </svg>
);

interface IconButtonProps {
  name: IconName;
  label: string;
  onClick: () => void;
  pressed?: boolean;
  disabled?: boolean;
  testid?: string;
}

export const IconButton = ({ name, label, onClick, pressed, disabled = false, testid }: IconButtonProps): JSX.Element => (
  <button
    type="button"
    class="icon-button"
    aria-label={label}
    title={label}
    aria-pressed={pressed}
    disabled={disabled}
    data-testid={testid}
    onClick={onClick}
  >
    <Icon name={name} />
  </button>
);
