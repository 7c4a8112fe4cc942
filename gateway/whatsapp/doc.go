// Package whatsapp is the channel WhatsApp: an account that is linked as a device of a phone's WhatsApp, over go.mau.fi/whatsmeow
// (the multi-device protocol of WhatsApp Web).
//
// # Setting an account up
//
//  1. Take a phone number of its own for the mesh, with WhatsApp on a phone. This is no official interface: WhatsApp may block a
//     number that writes to many strangers. Use one that you can lose.
//
//  2. Configure the vault's key (the account's keys are kept in the store, encrypted), and the channel:
//
//     channels: { whatsapp: {} }
//
//     or, for several numbers: channels: { whatsapp: { accounts: { sales: {}, support: {} } } }. There is no token: the
//     account is linked by a person.
//
//  3. Start the gateways. The account's owner reports the state "pairing".
//
//  4. Run "gatemesh channels pair whatsapp", or open the web page. On the phone: Settings, Linked devices, Link a device; scan the code.
//     A code lasts 20 seconds (the first one 60), and there are six of them.
//
//  5. The phone must be online now and then: WhatsApp unlinks a device whose phone was away for two weeks.
//
// "gatemesh channels logout whatsapp" unlinks it; so does the phone, and then the state is "logged-out" until it is linked again.
//
// # What is told and what is shown
//
// Peers are persons (dm) and groups (group); their id is the JID: 491701234567@s.whatsapp.net, 1203630@g.us. A person is named
// by the phone number where it is known, and by the hidden id (…@lid) where it is not. In a group the account is mentioned when it is
// named with @ or when its message is answered. Edits come as events of their own. Files are noted. What the account's owner writes on
// the phone, statuses, newsletters, polls and calls are not told. A post may name members of a group as @491701234567. Answers are not
// shown as quotes.
//
// An event is acknowledged (the second grey tick) after [gateway.Ingress] took it in; one that could not be taken in ends the
// connection, and WhatsApp sends it again to the next one.
//
// # Credentials under the lease
//
// Two clients that go on from the same state of a Signal session destroy it: the same key encrypts twice, and the receiver drops
// what it cannot read. So the sessions are in the store, not on a node. All that changes is kept in memory until something is about to
// leave the connection; then it is written, in one write of the vault, and only then do the bytes leave. The store refuses the write
// of a deposed owner, and then nothing leaves, and nothing after it. A successor finds the state from before or from after a
// message, never another; where it is after and the message did not leave, the receiver skips one key, as the protocol provides.
//
// One message is encrypted or decrypted at a time: the library reads a session, steps it on and writes it back, and an answer that is encrypted while
// the next message is decrypted would go on from a step that the other one has taken. (What it encrypts again for a device that could not read it is not
// covered.)
//
// Costs: one write for a message sent to a person or a group of up to some 55 devices (each further 55 one more), one for a message received, none for
// pings. Linking and the first connection cost three (812 one-time keys lie in seven rows). A message received is decrypted
// once: its plaintext is in the same write as the step of the ratchet, until it is taken in.
//
// Kept: the device, identities, sessions, groups' sender keys, one-time keys, hidden ids, privacy tokens, keys of the app state. Not
// kept, because it is no ratchet and can be had again or is not used: contacts, chat settings, the app state itself (read
// anew when it changes) and the secrets of polls. The history that a phone offers is not fetched.
//
// # Sending once
//
// A message's id is made of the post's. The post is checked before it is encrypted and, after the write above, before each write to the socket: what
// is left of the window is TLS and the system call. A post of which nothing can have left is said to be not sent. No answer within 30 seconds, or
// the end of the connection after the bytes may have left, is an unknown outcome.
//
// Unknown it stays: the server keeps no history that could be asked. With
//
//	channels: { whatsapp: { resendSameId: true } }
//
// [gateway.ChannelFinder] sends the message again under the same id, encrypted anew, until the server takes it. WhatsApp's own clients
// send again under the same id when their network is bad, and are seen to show such a message once. WhatsApp documents neither, and
// it has been tried with no real account here: so it is off unless you say so. A program on the other side that uses a library instead
// of WhatsApp's clients sees the message twice, under one id.
//
// Somebody else with the same credentials throws the connection out ("replaced"): the alarm is raised, unless the store says that it was
// our own successor, and the account is left alone for five minutes.
//
// # Not guaranteed
//
// Reactions, acknowledgements and requests for a message that could not be read are not checked by a post's Check, only by the write of
// the vault. Media are not fetched or sent.
//
// The library's socket has no lock around the field that a send reads and the end of the connection clears. So the end is kept from it
// until the account's posts and handlers are over and what was on its way to be sent has come to nothing (a tenth of a second). A
// goroutine of the library that begins to send after that, or a post during a logout, would still find a closed socket, or none.
package whatsapp
