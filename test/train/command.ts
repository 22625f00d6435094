/** Runs a command in this process; what it prints and how it ends. */
export async function printed(
  run: (args: string[]) => Promise<number>,
  ...args: string[]
): Promise<{ text: string; code: number; error?: Error }> {
  const { log, error } = console;
  const lines: string[] = [];
  console.log = (...parts) => lines.push(parts.join(" "));
  console.error = () => {};
  try {
    const code = await run(args);
    return { text: lines.join("\n"), code };
  } catch (thrown) {
    return { text: lines.join("\n"), code: 1, error: thrown as Error };
  } finally {
    Object.assign(console, { log, error });
  }
}
