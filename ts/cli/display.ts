import { styleText } from "node:util";
// Redraws the status in place and copes with wrapping, resizing and the cursor. Version 7: the last for Node 20.
import { createLogUpdate } from "log-update";

/** Where a command writes: lines that stay, and on a terminal a status below them that is redrawn. */
export interface Display {
  readonly live: boolean;
  readonly columns: number;
  line(text: string): void;
  status(lines: string[]): void;
  close(): void;
  paint(style: "cyan" | "dim" | "bold", text: string): string;
}

export function openDisplay(stream: NodeJS.WriteStream): Display {
  const live = stream.isTTY === true && process.env.TERM !== "dumb";
  if (!live) {
    return {
      live,
      columns: 80,
      line: (text) => void stream.write(`${text}\n`),
      status: () => {},
      close: () => {},
      paint: (_, text) => text,
    };
  }
  const log = createLogUpdate(stream);
  const colours = stream.hasColors(); // knows NO_COLOR
  return {
    live,
    get columns() {
      return stream.columns || 80; // some pseudo-terminals say 0
    },
    line(text) {
      log.clear();
      stream.write(`${text}\n`);
    },
    status: (lines) => log(lines.join("\n")),
    close() {
      log.clear();
      log.done();
    },
    paint: (style, text) => (colours ? styleText(style, text, { validateStream: false }) : text),
  };
}
