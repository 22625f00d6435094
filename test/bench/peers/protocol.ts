/** A tensor on the host, row-major. */
export interface HostTensor {
  shape: readonly number[];
  data: Float32Array;
}
export type Inputs = Record<string, HostTensor>;

/** A case as every engine gets it: what to compute, from what. */
export interface Spec {
  op: Op;
  inputs: Inputs;
  /** Espalier: op by op, not compiled. */
  eager?: boolean;
}

/**
 * What an engine is asked to compute; the same mathematics for all, each in the form that suits the engine best.
 * matmul(a, b) · softmax(x) and layerNorm(x, weight, bias) over the last axis, eps 1e-5 · gelu(x), tanh form ·
 * attention(q, k, v) [B, heads, N, D] · attentionGradients(q, k, v, dy): dq, dk, dv · block(x, weights) ·
 * blockStep(x, target, weights): a training step of the block, its outputs are the losses of the first steps ·
 * stditStep(x, target, code, y, weights): the same for the video transformer.
 */
export type Op =
  | "matmul"
  | "softmax"
  | "layerNorm"
  | "gelu"
  | "attention"
  | "attentionGradients"
  | "block"
  | "blockStep"
  | "stditStep";

/** Steps whose losses a training case gives as its output. */
export const STEPS = 4;
/** Adam's settings in the training cases. */
export const ADAM = { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
/** Heads in all models. */
export const HEADS = 4;

/** A case made ready by an engine. */
export interface Work {
  /** Issues one run and waits for nothing, except where the engine knows no other way. */
  run(): unknown;
  /** Resolves when all that was issued is done. */
  fence(): Promise<unknown>;
  /** Runs once and gives the results. */
  outputs(): Promise<Float32Array[]>;
}

/** An engine in a process of its own. */
export interface Peer {
  /** The adapter as the engine names it. */
  adapter: string;
  version: string;
  /** Undefined when the engine cannot do the case. */
  prepare(spec: Spec): Work | undefined | Promise<Work | undefined>;
}

/** How a process waits for its GPU: asleep between polls, or with a plain await that polls without a pause. */
export const WAITINGS = ["idle", "await"] as const;
export type Waiting = (typeof WAITINGS)[number];

/** What the benchmark asks of an engine's process, and what that answers. */
export type Request = { prepare: Spec; key: string } | { time: string; runs: number; waiting: Waiting };
export type Reply =
  | { ready: { adapter: string; version: string } }
  | { outputs?: Float32Array[]; firstMs: number }
  | { ms: number }
  | { error: string };
