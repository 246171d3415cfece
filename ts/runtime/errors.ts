/**
 * Every error that Evenkeel throws on purpose. A message says what was wrong, what was expected and what to do.
 *
 * Names are set on the prototypes: a minifier renames classes, and V8 writes the head of `stack` before a
 * subclass's fields exist. Not in static blocks, for whose sake esbuild renames the class.
 */
export class EvenkeelError extends Error {}

/** A shape, rank or length that does not fit. */
export class ShapeError extends EvenkeelError {}

/** A number, option or label outside its range. */
export class ValueError extends EvenkeelError {}

/** A name that does not exist; the message lists those that do. */
export class NameError extends EvenkeelError {}

/** A call that the present state does not allow; the message names the legal ones. */
export class StateError extends EvenkeelError {}

/** NaN or infinity in data, loss or gradients; nothing was committed. */
export class NonFiniteError extends EvenkeelError {}

/** WebAssembly memory cannot hold what was asked for; the runtime still works. */
export class MemoryLimitError extends EvenkeelError {}

/** Bytes that are not what they claim to be. */
export class FormatError extends EvenkeelError {}

/** Data that is missing or cannot be read; the message names the remedies. */
export class DataError extends EvenkeelError {}

/** The engine lacks something that Evenkeel needs. */
export class UnsupportedError extends EvenkeelError {}

/** A worker thread ended in the middle of its work; what was being written is lost, everything else is as it was. */
export class WorkerError extends EvenkeelError {}

/** The classes by the names that a minifier takes from them. */
const types = {
  EvenkeelError,
  ShapeError,
  ValueError,
  NameError,
  StateError,
  NonFiniteError,
  MemoryLimitError,
  FormatError,
  DataError,
  UnsupportedError,
  WorkerError,
};
for (const [name, type] of Object.entries(types)) {
  type.prototype.name = name;
  // Node prints the class's own name too, where it differs.
  Object.defineProperty(type, "name", { value: name });
}
