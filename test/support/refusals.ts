import { EvenkeelError } from "evenkeel";
import { expect, test } from "vitest";

/** A call that must be refused, by which error, in what words. */
export type Mistake = readonly [what: string, call: () => unknown, type: new () => EvenkeelError, words: RegExp];

/** What the type checker would have refused. */
export const wrong = <T>(value: unknown) => value as T;

/** The error of a call that must be refused, now or by its promise. */
export async function refusal(call: () => unknown): Promise<EvenkeelError> {
  try {
    await call();
  } catch (error) {
    expect(error).toBeInstanceOf(EvenkeelError);
    return error as EvenkeelError;
  }
  throw new Error("nothing was thrown");
}

/** A test for each mistake. */
export function refuses(mistakes: readonly Mistake[]): void {
  test.each(mistakes)("%s", async (_what, call, type, words) => {
    const error = await refusal(call);
    expect(error).toBeInstanceOf(type);
    expect(error.name).toBe(type.name);
    expect(error.message).toMatch(words);
  });
}
