/**
 * Makes `using x = …` work for a class with `dispose()`, on engines that know `Symbol.dispose`. The class declares
 * `declare [Symbol.dispose]: () => void` for the type: written as a method, it would be named "undefined" elsewhere.
 */
export function makeDisposable(type: { readonly prototype: { dispose(): void } }): void {
  const symbol: symbol | undefined = Symbol.dispose;
  if (symbol !== undefined) {
    Object.defineProperty(type.prototype, symbol, {
      configurable: true,
      writable: true,
      value(this: { dispose(): void }) {
        this.dispose();
      },
    });
  }
}
