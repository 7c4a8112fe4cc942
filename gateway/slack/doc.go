// Package slack is the channel "slack": one Slack app in one workspace, over slack-go and Socket Mode, so no port is open to
// the internet.
//
// # Setting it up
//
// 1. On https://api.slack.com/apps choose "Create New App", "From a manifest", your workspace, and paste:
//
//	display_information:
//	  name: gatemesh
//	features:
//	  app_home:
//	    messages_tab_enabled: true             # people may write to the app
//	    messages_tab_read_only_enabled: false
//	  bot_user:
//	    display_name: gatemesh
//	    always_online: true
//	oauth_config:
//	  scopes:
//	    bot:
//	      - chat:write         # to answer
//	      - im:write           # to find the direct messages with a person (conversations.open)
//	      - im:history         # direct messages: to hear them, and to look up whether an answer was posted
//	      - channels:history   # the same for public channels that the app is in
//	      - groups:history     # private channels
//	      - mpim:history       # direct messages of several people
//	      - app_mentions:read  # to hear its name in a channel
//	      - channels:read      # what kind of channel a mention came from: public
//	      - groups:read        # private
//	      - mpim:read          # several people
//	      - im:read            # one person
//	      - users:read         # people's names, for agents and logs
//	      - reactions:write    # the mark "being worked on" (ackReaction)
//	settings:
//	  event_subscriptions:
//	    bot_events: [message.im, message.channels, message.groups, message.mpim, app_mention]
//	  socket_mode_enabled: true
//	  org_deploy_enabled: false
//	  token_rotation_enabled: false
//
// 2. On Basic Information, App-Level Tokens, make a token with the scope connections:write: that is appToken (xapp-...).
//
// 3. On Install App install it to the workspace: the Bot User OAuth Token is botToken (xoxb-...).
//
// 4. Invite the app to the channels in which it is to hear (/invite @gatemesh), and configure, the same on every gateway
// that may hold the account:
//
//	channels: {
//	  slack: {
//	    enabled: true,
//	    appToken: "${SLACK_APP_TOKEN}",
//	    botToken: "${SLACK_BOT_TOKEN}",   // "token" is taken for it too
//	    ackReaction: "eyes",              // emoji on what is being worked on; "": none
//	    // apiUrl: "https://slack-gov.com/api/",  GovSlack; default https://slack.com/api/
//	  },
//	},
//
// One app serves one mesh. Slack hands each event to any one of an app's connections, so whoever else connects with the
// same app token takes a part of the messages.
//
// # What is an event
//
// What people write in direct messages and in the channels that the app is in, edits, and files (noted, not fetched). Not what bots
// write, this one included; not joins, deletions and the unfolding of links. The id is channel:ts, with the edit's ts for edits: a
// mention, which Slack sends as two events, is one. A direct message's peer is the person (U...), so that bindings
// name people; those of several are groups; public and private channels are channels. A reply in a thread has the thread's ts;
// the message that it began with belongs to the channel's conversation.
//
// Slack hears "got it" after Accept returned nil. Else it sends the event again, on any connection: three times by its
// documentation, at once, after a minute and after five. Those of one channel are taken in one after the other; an
// event that was not accepted comes after those behind it.
//
// # Posting
//
// Each post carries its id as message metadata, which people do not see. After an answer that was lost, Find looks for it
// in the channel's or thread's history, from a minute before Since and up to 10,000 messages: so it wants the history scopes. That
// it is not there is true of that moment: a request that is on its way yet may be taken later.
//
// Post.Check is asked when the connection is up and the body is about to be written. What Slack refuses with an error
// code it has not done; what its documentation says may have been done in part (fatal_error, internal_error), answers
// of 5xx, and answers that are lost or unreadable leave the outcome open. Nothing is tried again here.
//
// Markdown becomes Slack's mrkdwn, a table a block of code. Everything that would notify people (<!channel>, <@U1>) is
// escaped. A text has at most 4,000 characters, as Slack advises; Slack cuts off after 40,000, which is refused.
//
// # Connections
//
// slack-go opens connections and knows their messages; they are read here, because slack-go's own loop does not tell why Slack
// disconnects, waits up to five minutes without jitter, and closes a connection before it opens the next one. Here a
// warning (warning, refresh_requested) opens the next one first, and the old one is read on for three seconds. Pauses between tries
// double from 0.3 s to a minute, each drawn from 50 to 150 %; a Retry-After counts. A connection that does not answer a
// ping within 10 s is replaced; pings go out every 15 s. link_disabled, and tokens that Slack refuses, end Run.
//
// Foreign connections: Slack's hello counts the app's connections. More than ours are normal for a while after a
// handover. So they are counted again after 30 s, by a fresh connection, and only then the alarm is raised; it is repeated while they
// stay. As hello comes once, a fresh connection replaces a healthy one every 5 to 10 minutes, which finds who came
// later. too_many_websockets (more than ten) raises the alarm at once.
package slack
