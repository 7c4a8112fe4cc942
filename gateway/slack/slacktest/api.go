package slacktest

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
)

// Fault is a way to answer a call badly.
type Fault struct {
	// Applied does first what the call asks for.
	Applied bool
	// Delay waits before anything else is done; a caller who leaves meanwhile is forgotten.
	Delay time.Duration
	// Hang gives no answer until the caller leaves.
	Hang bool
	// Cut ends the connection instead of an answer.
	Cut bool
	// Code answers ok=false with this error; Needed is the scope that a missing_scope names.
	Code, Needed string
	// Status is an HTTP status, with a Retry-After of that many seconds if it is not zero.
	Status, RetryAfter int
	// Location is the header of that name.
	Location string
	// Body is sent as it is.
	Body string
}

// Fail lets the next calls of a method go wrong, one each. The method "link" is the opening of a WebSocket, which knows
// Cut, Status and Body.
func (s *Server) Fail(method string, faults ...Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[method] = append(s.faults[method], faults...)
}

// Refuse answers every call with this error from now on, and ends all connections; empty: all is well again.
func (s *Server) Refuse(code string) {
	s.mu.Lock()
	s.refusal = code
	s.changeLocked()
	s.mu.Unlock()
	if code != "" {
		s.Cut()
	}
}

// fault is what is to go wrong with the next call; nil: nothing.
func (s *Server) fault(method string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.faults[method]
	if len(q) == 0 {
		return nil
	}
	s.faults[method] = q[1:]
	return &q[0]
}

type answer map[string]any

func failed(code string) answer { return answer{"ok": false, "error": code} }

func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request) {
	method := r.PathValue("method")
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.requests[method]++
	s.changeLocked()
	s.mu.Unlock()
	fault := s.fault(method)
	if fault == nil {
		reply(w, http.StatusOK, s.call(method, r))
		return
	}
	if fault.Delay > 0 {
		t := time.NewTimer(fault.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			return
		}
	}
	var a answer
	if fault.Applied || *fault == (Fault{Delay: fault.Delay}) {
		a = s.call(method, r)
	}
	switch {
	case fault.Hang:
		<-r.Context().Done()
	case fault.Cut:
		panic(http.ErrAbortHandler)
	case fault.Code != "":
		a = failed(fault.Code)
		a["needed"] = fault.Needed
		reply(w, http.StatusOK, a)
	case fault.Status != 0 || fault.Body != "":
		if fault.RetryAfter > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(fault.RetryAfter))
		}
		if fault.Location != "" {
			w.Header().Set("Location", fault.Location)
		}
		w.WriteHeader(max(fault.Status, http.StatusOK))
		_, _ = w.Write([]byte(fault.Body))
	default:
		reply(w, http.StatusOK, a)
	}
}

func reply(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(a)
}

// call does what a method is asked for.
func (s *Server) call(method string, r *http.Request) answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, app := r.Form.Get("token"), method == "apps.connections.open"
	if bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok {
		token = bearer
	}
	t, known := s.tokensOfLocked(token)
	switch {
	case s.refusal != "":
		return failed(s.refusal)
	case token == "":
		return failed("not_authed")
	case !known:
		return failed("invalid_auth")
	case t.revoked:
		return failed("token_revoked")
	case app != (token == t.app):
		return failed("not_allowed_token_type")
	}
	do, ok := map[string]func(url.Values) answer{
		"auth.test": s.authTestLocked, "apps.connections.open": s.openLinkLocked, "users.info": s.userInfoLocked,
		"conversations.open": s.openIMLocked, "conversations.info": s.channelInfoLocked,
		"chat.postMessage": s.postMessageLocked, "conversations.history": s.historyLocked, "conversations.replies": s.repliesLocked,
		"reactions.add": s.reactLocked, "reactions.remove": s.unreactLocked,
	}[method]
	if !ok {
		return failed("unknown_method")
	}
	r.Form.Set("token", token)
	a := do(r.Form)
	if _, no := a["error"]; !no {
		a["ok"] = true
	}
	s.changeLocked()
	return a
}

func (s *Server) authTestLocked(url.Values) answer {
	return answer{"url": "https://example.slack.com/", "team": "Example", "user": BotName, "team_id": Team, "user_id": BotUser, "bot_id": Bot}
}

func (s *Server) openLinkLocked(f url.Values) answer {
	ticket := uuid.NewString()
	s.tickets[ticket] = f.Get("token")
	return answer{"url": "ws://" + s.listen.Addr().String() + "/link/?" + url.Values{"ticket": {ticket}, "app_id": {App}}.Encode()}
}

func (s *Server) userInfoLocked(f url.Values) answer {
	name, ok := s.users[f.Get("user")]
	if !ok {
		return failed("user_not_found")
	}
	return answer{"user": answer{
		"id": f.Get("user"), "name": strings.ToLower(name), "real_name": name + " Example",
		"profile": answer{"display_name": name, "real_name": name + " Example"},
	}}
}

func (s *Server) openIMLocked(f url.Values) answer {
	if c := s.imLocked(f.Get("users")); c != nil && c.kind == KindIM {
		return answer{"channel": answer{"id": c.id}}
	}
	return failed("user_not_found")
}

func (s *Server) channelInfoLocked(f url.Values) answer {
	c := s.channels[f.Get("channel")]
	if c == nil {
		return failed("channel_not_found")
	}
	return answer{"channel": answer{
		"id": c.id, "name": strings.ToLower(c.id), "user": c.user, "is_archived": c.archived, "is_member": !c.left,
		"is_channel": c.kind == KindChannel, "is_group": c.kind == KindPrivate, "is_private": c.kind != KindChannel,
		"is_im": c.kind == KindIM, "is_mpim": c.kind == KindTalk,
	}}
}

// textMax is where Slack cuts a text off.
const textMax = 40000

func (s *Server) postMessageLocked(f url.Values) answer {
	c := s.imLocked(f.Get("channel"))
	switch {
	case c == nil:
		return failed("channel_not_found")
	case c.archived:
		return failed("is_archived")
	case c.left:
		return failed("not_in_channel")
	case f.Get("text") == "":
		return failed("no_text")
	}
	m := &message{ts: s.stampLocked(), user: BotUser, bot: Bot, text: f.Get("text"), thread: f.Get("thread_ts")}
	if utf8.RuneCountInString(m.text) > textMax {
		m.text = string([]rune(m.text)[:textMax])
	}
	if md := f.Get("metadata"); md != "" {
		var shape struct {
			EventType    string         `json:"event_type"`
			EventPayload map[string]any `json:"event_payload"`
		}
		if err := json.Unmarshal([]byte(md), &shape); err != nil || shape.EventType == "" || shape.EventPayload == nil {
			return failed("invalid_metadata_format")
		}
		m.metadata = json.RawMessage(md)
	}
	c.add(m)
	s.posts = append(s.posts, Post{Channel: c.id, User: c.user, TS: m.ts, Thread: m.thread, Text: m.text, Metadata: string(m.metadata)})
	s.announceLocked(c, m)
	return answer{"channel": c.id, "ts": m.ts, "message": m.show(false)}
}

// show is a message in an answer or an event.
func (m *message) show(metadata bool) answer {
	a := answer{"type": "message", "user": m.user, "text": m.text, "ts": m.ts}
	if m.bot != "" {
		a["bot_id"] = m.bot
	}
	if m.thread != "" {
		a["thread_ts"] = m.thread
	} else if m.root {
		a["thread_ts"] = m.ts
	}
	if m.edited != "" {
		a["edited"] = answer{"user": m.user, "ts": m.edited}
	}
	if len(m.files) > 0 {
		a["files"] = m.files
	}
	if metadata && m.metadata != nil {
		a["metadata"] = m.metadata
	}
	return a
}

func (s *Server) historyLocked(f url.Values) answer {
	c := s.channels[f.Get("channel")]
	if c == nil {
		return failed("channel_not_found")
	}
	var all []*message
	for _, m := range c.messages {
		if m.thread == "" || m.thread == m.ts {
			all = append(all, m)
		}
	}
	slices.Reverse(all)
	return page(f, all)
}

func (s *Server) repliesLocked(f url.Values) answer {
	c := s.channels[f.Get("channel")]
	if c == nil {
		return failed("channel_not_found")
	}
	root := f.Get("ts")
	var all []*message
	for _, m := range c.messages {
		if m.ts == root || m.thread == root {
			all = append(all, m)
		}
	}
	if len(all) == 0 {
		return failed("thread_not_found")
	}
	return page(f, all)
}

// page is a part of all that lies within oldest and latest.
func page(f url.Values, all []*message) answer {
	oldest, latest, inclusive := f.Get("oldest"), f.Get("latest"), f.Get("inclusive") == "1"
	all = slices.DeleteFunc(slices.Clone(all), func(m *message) bool {
		return oldest != "" && (m.ts < oldest || m.ts == oldest && !inclusive) || latest != "" && (m.ts > latest || m.ts == latest && !inclusive)
	})
	limit, err := strconv.Atoi(f.Get("limit"))
	if err != nil || limit < 1 || limit > 999 {
		limit = 100
	}
	from := 0
	if c := f.Get("cursor"); c != "" {
		b, err := base64.StdEncoding.DecodeString(c)
		if err == nil {
			from, err = strconv.Atoi(string(b))
		}
		if err != nil || from > len(all) {
			return failed("invalid_cursor")
		}
	}
	to := min(from+limit, len(all))
	msgs := []answer{}
	for _, m := range all[from:to] {
		msgs = append(msgs, m.show(f.Get("include_all_metadata") == "1"))
	}
	a := answer{"messages": msgs, "has_more": to < len(all)}
	if to < len(all) {
		a["response_metadata"] = answer{"next_cursor": base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(to)))}
	}
	return a
}

func (s *Server) reactLocked(f url.Values) answer {
	m := s.channels[f.Get("channel")].find(f.Get("timestamp"))
	switch {
	case m == nil:
		return failed("message_not_found")
	case slices.Contains(m.reactions, f.Get("name")):
		return failed("already_reacted")
	}
	m.reactions = append(m.reactions, f.Get("name"))
	return answer{}
}

func (s *Server) unreactLocked(f url.Values) answer {
	m := s.channels[f.Get("channel")].find(f.Get("timestamp"))
	if m == nil {
		return failed("message_not_found")
	}
	i := slices.Index(m.reactions, f.Get("name"))
	if i < 0 {
		return failed("no_reaction")
	}
	m.reactions = slices.Delete(m.reactions, i, i+1)
	return answer{}
}
