/**
 * Gives classes back the names that a minifier took: engines show them in stacks and on consoles, messages say what they got.
 * Of all functions and classes the names would be 4 KB of the bundle.
 */
export function named(types: Record<string, { readonly prototype: unknown }>): void {
  for (const [name, type] of Object.entries(types)) Object.defineProperty(type, "name", { value: name });
}
