// Package discordtest is a fake of Discord at the wire: the REST API and the WebSocket gateway, as far as a bot that chats uses them.
// Only tests import it. It listens on the loopback interface, so gateways of other processes can be pointed at it (channels.discord.baseUrl).
//
// It does what Discord documents: every session of the token gets every event; a session that lost its connection can be resumed and then gets
// what it missed, from the sequence number that it names; a new session gets the guild with the last message of each channel, and nothing of the
// past; a nonce that is enforced gives the same message back for [NonceWindow]; a history holds no nonce. And it misbehaves on demand.
//
// It imports nothing of gatemesh's: it is the other side.
package discordtest
