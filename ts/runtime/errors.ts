/**
 * Every error that Evenkeel throws on purpose. A message says what was wrong, what was expected and what to do.
 *
 * Names are set on the prototypes: a minifier renames classes, and V8 writes the head of `stack` before a
 * subclass's fields exist. Not in static blocks, for whose sake esbuild renames the class.
 */
export class EvenkeelError extends Error {}
EvenkeelError.prototype.name = "EvenkeelError";

/** A shape, rank or length that does not fit. */
export class ShapeError extends EvenkeelError {}
ShapeError.prototype.name = "ShapeError";

/** A number, option or label outside its range. */
export class ValueError extends EvenkeelError {}
ValueError.prototype.name = "ValueError";

/** A name that does not exist; the message lists those that do. */
export class NameError extends EvenkeelError {}
NameError.prototype.name = "NameError";

/** A call that the present state does not allow; the message names the legal ones. */
export class StateError extends EvenkeelError {}
StateError.prototype.name = "StateError";

/** NaN or infinity in data, loss or gradients; nothing was committed. */
export class NonFiniteError extends EvenkeelError {}
NonFiniteError.prototype.name = "NonFiniteError";

/** WebAssembly memory cannot hold what was asked for; the runtime still works. */
export class MemoryLimitError extends EvenkeelError {}
MemoryLimitError.prototype.name = "MemoryLimitError";

/** Bytes that are not what they claim to be. */
export class FormatError extends EvenkeelError {}
FormatError.prototype.name = "FormatError";

/** Data that is missing or cannot be read; the message names the remedies. */
export class DataError extends EvenkeelError {}
DataError.prototype.name = "DataError";

/** The engine lacks something that Evenkeel needs. */
export class UnsupportedError extends EvenkeelError {}
UnsupportedError.prototype.name = "UnsupportedError";

/** A worker thread ended in the middle of its work; what was being written is lost, everything else is as it was. */
export class WorkerError extends EvenkeelError {}
WorkerError.prototype.name = "WorkerError";
