// Package slacktest is a fake of Slack at the wire, for tests: the part of the Web API and of Socket Mode that gatemesh uses, as
// Slack's documentation describes it, over real HTTP and real WebSockets, with faults on demand. Any number of gateways, in this process
// or in others, may use one at the same time, by its URL.
//
// What it keeps to: an event goes to one connection, drawn at random, of up to ten; what is not acknowledged in time, or was on a
// connection that ended, goes to another one, with retry_attempt; the message event and the app_mention event of one message
// have different event_ids; the app hears its own posts; hello tells the number of connections; history comes newest first, threads
// oldest first, both in pages; metadata is given to those who ask for it.
//
// What it leaves out: rate limits of its own (ask for them with [Server.Fail]), scopes, files' contents, and that Slack
// forgets an event for which there was no connection for long: it is kept for the next one.
package slacktest
