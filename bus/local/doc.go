// Package local is the embedded [bus.Store]: one bbolt file, one process.
//
// # What is promised
//
//   - A transaction that Txn answered without an error is on disk (fdatasync)
//     before the answer. It survives kill -9 of the process and, as far as the disk
//     keeps what it says, a power cut.
//   - Transactions are applied one after another. Concurrent ones share a commit:
//     one goroutine collects whatever waits and writes it with one sync. Nothing
//     lingers for company. Each is judged on its own; a refused one changes nothing
//     and harms no other.
//   - Every read sees every transaction that was answered before it began.
//   - The rules are those of Consul's KV transactions, down to this one: a write
//     that changes neither value nor lock keeps the ModifyIndex and wakes nobody.
//     A delete-cas of a missing key succeeds, as there.
//   - The end of a session and the deletion of every key it locks are one commit.
//     Its TTL is never cut short: it is counted from when NewSession or
//     RenewSession has done its work. From the moment it has passed the session
//     cannot be renewed, takes no lock and passes no check, even while a full disk
//     keeps the deletion from being written (it is tried again every second).
//
// # What is not promised
//
//   - A second process. The file is locked; [Open] says so with [ErrInUse].
//     Sessions that the file still knows belong to a process that is dead, so Open
//     ends them, and their locks with them.
//   - A file that shrinks. Freed pages are used again, not returned.
//   - A limit on what is stored. Values are bounded ([bus.Limits]), their sum is not.
//   - Service checks: SessionOptions.Checks is ignored.
//   - Session lock-delay: a key whose lock was lost can be locked again at once.
//
// # Errors
//
// A commit that fails is [bus.ErrUnavailable] wrapped around its cause; errors.Is
// finds syscall.ENOSPC in it. Nothing of it can be seen then, unless only the last
// sync failed. It takes no restart: the next commit succeeds once the cause is
// gone. An index that a failed commit had given out is never given out again.
package local
