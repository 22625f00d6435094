import { type ChildProcess, fork } from "node:child_process";
import type { Reply, Request, Spec, Waiting } from "./protocol.js";

/** An engine in a process of its own, seen from the benchmark. */
export class Client {
  private readonly child: ChildProcess;
  private readonly replies: Reply[] = [];
  private awaiting: ((reply: Reply) => void) | undefined;
  private errors = "";
  adapter = "";
  version = "";

  private constructor(
    readonly name: string,
    adapter: string | undefined,
  ) {
    this.child = fork(".build/run.mjs", ["test/bench/peers/process.ts", name], {
      env: { ...process.env, ...(adapter !== undefined && { ESPALIER_ADAPTER: adapter }) },
      serialization: "advanced",
      stdio: ["ignore", "ignore", "pipe", "ipc"],
    });
    this.child.stderr!.on("data", (chunk) => {
      this.errors = `${this.errors}${chunk}`.slice(-4000);
    });
    this.child.on("message", (reply: Reply) => this.take(reply));
    this.child.on("exit", (code, signal) =>
      this.take({ error: `its process ended (${signal ?? code}): ${this.errors.trim()}` }),
    );
  }

  private take(reply: Reply): void {
    const { awaiting } = this;
    this.awaiting = undefined;
    if (awaiting) awaiting(reply);
    else this.replies.push(reply);
  }

  private async reply<K extends string>(_: K): Promise<Extract<Reply, Record<K, unknown>>> {
    const reply = this.replies.shift() ?? (await new Promise<Reply>((resolve) => (this.awaiting = resolve)));
    if ("error" in reply) throw new Error(`${this.name}: ${reply.error}`);
    return reply as Extract<Reply, Record<K, unknown>>;
  }

  private send(request: Request): void {
    if (this.child.connected) this.child.send(request);
  }

  /** Starts an engine on the adapter that Espalier takes by that name. */
  static async start(name: string, adapter?: string): Promise<Client> {
    const client = new Client(name, adapter);
    const { ready } = await client.reply("ready");
    client.adapter = ready.adapter;
    client.version = ready.version;
    return client;
  }

  /** Makes a case ready and runs it once; `outputs` is undefined when the engine cannot do it. */
  async prepare(key: string, spec: Spec): Promise<{ outputs?: Float32Array[]; firstMs: number }> {
    this.send({ prepare: spec, key });
    return this.reply("firstMs");
  }

  /** Milliseconds of `runs` runs issued together and waited for once. */
  async time(key: string, runs: number, waiting: Waiting): Promise<number> {
    this.send({ time: key, runs, waiting });
    return (await this.reply("ms")).ms;
  }

  /** Ends the process. */
  stop(): void {
    this.child.removeAllListeners("exit");
    this.child.kill();
  }
}
