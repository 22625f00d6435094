import { frameOf } from "./film.js";
import type { Film } from "./messages.js";

/** Frames a second. */
const RATE = 8;

/** Loops a film on a canvas, pixel by pixel; the page's style enlarges it. A second canvas shows all its frames. */
export class Player {
  #film: Film | undefined;
  #playing = true;
  #frame = 0;
  /** When the film would have been at its first frame. */
  #start = 0;

  /** @param mark lies over the strip and is moved to the frame that is shown */
  constructor(
    private readonly canvas: HTMLCanvasElement,
    private readonly strip: HTMLCanvasElement,
    private readonly mark: HTMLElement,
  ) {}

  get playing(): boolean {
    return this.#playing;
  }

  set playing(on: boolean) {
    this.#playing = on;
    this.#start = performance.now() - (this.#frame * 1000) / RATE;
  }

  /** Shows a film, from the frame on that the one before had reached. */
  show(film: Film): void {
    const { canvas, strip, mark } = this;
    const { frames, height, width } = film;
    const before = this.#film;
    this.#film = film;
    if (before?.width !== width || before.height !== height || before.frames !== frames) {
      [canvas.width, canvas.height] = [width, height];
      [strip.width, strip.height] = [frames * width, height];
      mark.style.width = `${100 / frames}%`;
      mark.hidden = false;
      this.#frame = 0;
    }
    const all = strip.getContext("2d")!;
    for (let t = 0; t < frames; t++) all.putImageData(frameOf(film, t), t * width, 0);
    this.#draw(this.#frame);
    if (!before) {
      this.playing = this.#playing;
      this.#turn();
    }
  }

  #draw(t: number): void {
    this.#frame = t;
    this.canvas.getContext("2d")!.putImageData(frameOf(this.#film!, t), 0, 0);
    this.mark.style.left = `${(100 * t) / this.#film!.frames}%`;
  }

  #turn = (): void => {
    const t = Math.floor(((performance.now() - this.#start) * RATE) / 1000) % this.#film!.frames;
    if (this.#playing && t !== this.#frame) this.#draw(t);
    requestAnimationFrame(this.#turn);
  };
}
