// Package discord connects a Discord bot as a chat channel.
//
// # Setting it up
//
//  1. https://discord.com/developers/applications, New Application, then its page Bot: Reset Token shows the token once. Set it as
//     channels.discord.token, best from the environment: {"channels": {"discord": {"token": "${DISCORD_TOKEN}"}}}.
//  2. On the same page switch on MESSAGE CONTENT INTENT. Without it Discord closes the connection with 4014 and gatemesh says so. The other
//     intents that are asked for (guilds, guild messages, direct messages) need no switch.
//  3. Invite it: https://discord.com/oauth2/authorize?scope=bot&permissions=274877975616&client_id=ID, with the Application ID of the page General
//     Information. The number is the permissions View Channels, Send Messages, Send Messages in Threads, Read Message History and Add Reactions.
//  4. Say something to it. A direct message always counts as addressed to it, elsewhere @name or an answer to one of its messages does.
//
// A peer of the kind "dm" has the person's id, one of the kind "channel" the id of the channel; a message in a thread has the thread's parent as
// its peer. Ids are shown by Copy ID, with Developer Mode on (User Settings, Advanced). channels.discord.baseUrl points at another API than
// https://discord.com: a proxy or a fake, which gets the token.
//
// # What is promised
//
// Discord's gateway acknowledges no single event. It numbers them, and a session that lost its connection is resumed after a number that the client
// names; the rest is told again. So the number that this package names, there and in its heartbeats, is that of the last event that the bus has: one that
// the bus did not take comes again. While the bus takes nothing, nothing more is read. An event's id is the message's id, an edit's that and the stamp of the
// edit: what is told twice is taken in once.
//
// With a Vault a session outlives its owner: session, number and the last messages of up to 500 channels are saved, at the latest 2 s after they changed,
// and the next owner resumes the same session. (Discord lets a client that
// is started anew resume; nothing ties a session to an address. Where it refuses, the next paragraph holds.)
//
// A session that cannot be resumed (Discord forgets it after minutes without a connection) is replaced by a new one, which hears nothing of the past.
// Then the history is read: of each room and active thread whose last message is new, from the last message that was taken in, and of each direct
// conversation that is in the Vault. Without a Vault, or in a room that is not in it, from five minutes before the start.
//
// # What is not promised
//
//   - When no session can be resumed, these are lost: edits; more than 1,000 messages of one channel; what is older than 24 hours; direct messages of
//     somebody who never wrote before, or (without a Vault) of anybody, for Discord shows a bot no list of its direct conversations; threads that were
//     archived meanwhile; rooms where the bot may not read the history.
//   - Order is kept within a channel, not among several.
//   - Deleted messages are not taken back.
//   - A mention of the bot's role is not one of the bot.
//
// # Posts
//
// A post carries a nonce that is made of its id, with enforce_nonce: for "the past few minutes", as Discord's documentation has it, Discord gives the
// same message back instead of making a second one, whoever sends it. How many that is, it does not say. [channel.Find] relies on 90 seconds from the time when the
// post was first meant to be sent; it then sends the post again, behind the same check. Later it reads the channel's history. That can say that
// there is no such post; that there is one it can say only of posts whose event this gateway heard, for the history keeps no nonces. So an old post that
// may be there is unknown.
//
// The check of a post is made when the connection stands and its first byte is about to be written. Nothing is retried behind it: a rate limit (of a channel or of
// all, by Discord or a proxy) makes the post "not sent", with the time to wait; so does
// a refusal that is not in Discord's words. No answer, and every 5xx, leaves it unknown. Nobody is notified by what a
// post has in it (@everyone, @here, roles, people): allowed_mentions is empty.
//
// # Foreign connections
//
// Discord lets several programs use one token at the same time, and each hears everything. Two signs raise the alarm: more sessions were begun with the token than
// this gateway began (GET /gateway/bot counts what is left of the day's; looked at every five minutes and before each new session), and a message of
// the bot's that has no nonce of a mesh. A foreign program that began its session before and posts nothing is not noticed.
//
// # The libraries
//
// REST (rate limits, errors) and all types are those of github.com/bwmarrin/discordgo. Its gateway client is not used, for reasons that cannot
// be mended from outside (v0.29.0): it counts an event as received before anybody has handled it; Close sleeps a second, with the lock held;
// "reconnect" in answer to an identify locks up Open for ever; a frame that is null panics; "invalid session" is answered with an identify at
// once, though it may be resumed or has to wait. The loop here is over github.com/coder/websocket, as the rest of gateway.
package discord
