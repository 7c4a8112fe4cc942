package gateway

import (
	"net/http"

	"github.com/gatemesh/gatemesh/gateway/dashboard"
)

// A route is one line of the API: who may use it, and how much a request may carry. Without a role nobody
// may, and without a bound it may carry nothing.
type route struct {
	pattern string
	role    role
	body    int64
	serve   http.Handler
}

// agentRoutes are those that a token may use which speaks for one agent (gateway.auth.tokens, agent). What they show of messages and dead letters is that agent's alone. A
// route that is new is not among them.
var agentRoutes = map[string]bool{
	"GET /v1/status":        true,
	"GET /v1/agents":        true,
	"GET /v1/gateways":      true,
	"GET /v1/owners":        true,
	"GET /v1/messages/{id}": true,
	"GET /v1/deadletters":   true,
	"GET /v1/state/events":  true,
	"GET /v1/state/focus":   true,
	"POST /v1/state/events": true,
	"PUT /v1/state/focus":   true,
	"POST /v1/messages":     true,

	"GET /v1/agents/{agent}/mailbox":              true,
	"POST /v1/agents/{agent}/check":               true,
	"POST /v1/agents/{agent}/mail":                true,
	"POST /v1/agents/{agent}/mail/{id}/{verdict}": true,
}

// endpoint answers a request, or returns an error that writeError turns into the answer.
type endpoint func(http.ResponseWriter, *http.Request) error

// routes is the whole API. There is no other way in: the mux is made of this table.
func (g *Gateway) routes() []route {
	at := func(pattern string, r role, body int64, f endpoint) route {
		return route{pattern, r, body, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				g.writeError(w, r, err)
			}
		})}
	}
	return []route{
		at("GET /health", roleOpen, 0, g.getHealth),
		at("GET "+healthStorePath, roleOpen, 0, g.getStoreHealth),
		at("GET /ready", roleOpen, 0, g.getReady),
		{"GET /metrics", roleOpen, 0, g.metrics.handler()},
		{"GET /{$}", roleOpen, 0, dashboard.Handler()},
		{"GET /chat", roleOpen, 0, dashboard.Handler()},
		{"GET /dashboard/", roleOpen, 0, dashboard.Handler()},

		at("GET /v1/status", roleRead, 0, g.getStatus),
		at("GET /v1/messages", roleRead, 0, g.getMessages),
		at("GET /v1/messages/{id}", roleRead, 0, g.getMessage),
		at("GET /v1/agents", roleRead, 0, g.getAgents),
		at("GET /v1/gateways", roleRead, 0, g.getGateways),
		at("GET /v1/inboxes", roleRead, 0, g.getInboxes),
		at("GET /v1/inboxes/{agent}", roleRead, 0, g.getInbox),
		at("GET /v1/fanouts/{id}", roleRead, 0, g.getFanout),
		at("GET /v1/deadletters", roleRead, 0, g.getDeadLetters),
		at("GET /v1/state/events", roleRead, 0, g.getStateEvents),
		at("GET /v1/state/focus", roleRead, 0, g.getFocus),
		at("GET /v1/queues", roleRead, 0, g.getQueues),
		at("GET /v1/queues/{queue}/tasks", roleRead, 0, g.getTasks),
		at("GET /v1/owners", roleRead, 0, g.getOwners),
		at("GET /v1/keys", roleRead, 0, g.getKeys),
		at("GET /v1/channels", roleRead, 0, g.getChannels),
		at("GET /v1/route", roleRead, 0, g.getRoute),
		at("GET /v1/sessions", roleRead, 0, g.getSessions),
		at("GET /v1/sessions/{agent}/{conversation}", roleRead, 0, g.getSession),
		at("GET /v1/costs", roleRead, 0, g.getCosts),
		at("GET /v1/skills", roleRead, 0, g.getSkills),
		at("GET /v1/cron", roleRead, 0, g.getCron),
		at("GET /v1/cron/{job}/runs", roleRead, 0, g.getCronRuns),
		at("GET /v1/events", roleRead, 0, g.getEvents),
		at("GET /v1/webchat", roleSend, 0, g.getWebchat),

		at("POST /v1/messages", roleSend, MaxBodyBytes, g.postMessage),
		at("POST /v1/messages/{id}/cancel", roleSend, MaxOrderBytes, g.postMessageCancel), // of what others asked: operate
		at(modelsRoute, roleRead, 0, g.getModels),
		at(modelRoute, roleRead, 0, g.getModel),
		at(completionsRoute, roleSend, MaxBodyBytes, g.postCompletion),
		at("GET /v1/agents/{agent}/mailbox", roleRead, 0, g.getMailbox),
		at("POST /v1/agents/{agent}/check", roleSend, MaxOrderBytes, g.postCheck),
		at("POST /v1/agents/{agent}/mail", roleSend, MaxOrderBytes, g.postFetch),
		at("POST /v1/agents/{agent}/mail/{id}/{verdict}", roleSend, MaxBodyBytes, g.postMail),
		at("POST /v1/fanouts", roleSend, MaxBodyBytes, g.postFanout),
		at("POST /v1/state/events", roleSend, MaxOrderBytes, g.postStateEvent),
		at("PUT /v1/state/focus", roleSend, MaxOrderBytes, g.putFocus),

		at("POST /v1/deadletters/redrive", roleOperate, MaxOrderBytes, g.postDeadLetters(redrive)),
		at("POST /v1/deadletters/purge", roleOperate, MaxOrderBytes, g.postDeadLetters(purge)),
		at("POST /v1/queues/{queue}/tasks/{id}/cancel", roleOperate, MaxOrderBytes, g.postCancel),
		at("POST /v1/owners/{duty}/transfer", roleOperate, MaxOrderBytes, g.postOwner(true)),
		at("POST /v1/owners/{duty}/release", roleOperate, MaxOrderBytes, g.postOwner(false)),
		at("POST /v1/cron", roleOperate, MaxOrderBytes, g.postCron),
		at("POST /v1/cron/{job}/{order}", roleOperate, 0, g.postCronOrder),
		at("DELETE /v1/cron/{job}", roleOperate, 0, g.postCronOrder),
		at("POST /v1/keys/rotate", roleOperate, 0, g.postRotate),
		at("POST /v1/channels/{inbox}/pair", roleOperate, MaxOrderBytes, g.postPair),
		at("POST /v1/channels/{inbox}/logout", roleOperate, MaxOrderBytes, g.postLogout),
		at("DELETE /v1/state/events", roleOperate, 0, g.deleteStateEvents),
		at("DELETE /v1/state/focus", roleOperate, 0, g.deleteFocus),
	}
}
