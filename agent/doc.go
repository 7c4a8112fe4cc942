// Package agent turns a delivered envelope into an answer.
//
// A runner is what answers an agent's messages; [Runners] finds it by its kind. The
// set is passed explicitly: whoever assembles the process adds what needs an outside thing
// (see [Checks] for the infrastructure check).
//
// What a runner must keep to:
//
//   - Handle may run again for the same message, here or on another gateway. What it
//     sends through the message (Reply, Send, Ask) is safe then; other effects
//     must be idempotent on the message id.
//   - When its context is cancelled the gateway stops: return that error, and the
//     next owner begins anew without a counted attempt.
//   - What the user can be told is a reply, not an error. An error is tried again.
package agent
