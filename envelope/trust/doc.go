// Package trust says who said something: keys, signatures, and the set of those who may speak.
//
// Every gateway has one Ed25519 [Key]. What it writes for others is signed over a statement that begins with
// the kind of the thing, so no signature means anything as another kind, and that names mesh, gateway, key, moment
// and the store's key, so none means anything at another place:
//
//	gatemesh/<kind>/v1 LF mesh LF gateway LF key id LF unix milliseconds LF store key LF body
//
// A record ([SignRecord]) carries its stamp as its last member. An entry of a lane carries one signature over the Merkle
// root of its items ([EntryHead]), because a signature a message would cost more than all the rest; a [Proof] cuts one
// item out, so that a third gateway can check what the first one said without the entry.
//
// A [Set] names the gateways of a mesh, their keys and the agents that each may host. An operator's key signs it,
// which no gateway holds. An [Anchor] keeps the newest set that a gateway has seen on its own disk and refuses an older one,
// another mesh's and one that the operators of the set before it did not sign. A [Verifier] answers from it, without a lock.
//
// Not promised: that a stamp's moment is true (whoever holds a key may date back, so a key that may be known to others
// must be revoked and not left to end), nor that something was not left out.
package trust
