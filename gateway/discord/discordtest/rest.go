package discordtest

import (
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /gateway", s.serveGateway)
	mux.HandleFunc("GET /gateway/", s.serveGateway) // the address ends with a slash when parameters follow
	api := func(pattern string, h http.HandlerFunc) {
		method, path, _ := strings.Cut(pattern, " ")
		mux.HandleFunc(method+" /api/v10"+path, func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			ok := r.Header.Get("Authorization") == "Bot "+s.Token && !s.revoked
			s.mu.Unlock()
			if !ok {
				s.refuse(w, r, http.StatusUnauthorized, 0, "401: Unauthorized")
				return
			}
			h(w, r)
		})
	}
	api("GET /gateway", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"url": s.wsURL()}) })
	api("GET /gateway/bot", s.gatewayBot)
	api("GET /users/@me", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, User{ID: BotID, Username: "gatemesh", Bot: true})
	})
	api("POST /users/@me/channels", s.openDM)
	api("GET /channels/{id}", s.getChannel)
	api("GET /channels/{id}/messages", s.getMessages)
	api("POST /channels/{id}/messages", s.post)
	api("PUT /channels/{id}/messages/{message}/reactions/{emoji}/@me", s.react)
	api("DELETE /channels/{id}/messages/{message}/reactions/{emoji}/@me", s.react)
	return mux
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

// refuse answers as Discord does; and it repeats the token, to see who writes an answer into a log.
func (s *Server) refuse(w http.ResponseWriter, r *http.Request, status, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "message": text + " (" + r.Header.Get("Authorization") + ")"})
}

func (s *Server) gatewayBot(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	answer(w, map[string]any{"url": s.wsURL(), "shards": 1, "session_start_limit": map[string]any{
		"total": 1000, "remaining": s.starts, "reset_after": 3600000, "max_concurrency": 1,
	}})
}

func (s *Server) openDM(w http.ResponseWriter, r *http.Request) {
	var to struct {
		ID string `json:"recipient_id"`
	}
	if json.NewDecoder(r.Body).Decode(&to) != nil || to.ID != Alice {
		s.refuse(w, r, http.StatusBadRequest, 50033, "Invalid Recipient(s)")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer(w, s.channels[AliceDM])
}

// room returns the channel of a request, or answers that there is none.
func (s *Server) room(w http.ResponseWriter, r *http.Request) (Channel, bool) {
	s.mu.Lock()
	c := s.channels[r.PathValue("id")]
	var room Channel
	if c != nil {
		room = *c
	}
	s.mu.Unlock()
	if c == nil {
		s.refuse(w, r, http.StatusNotFound, 10003, "Unknown Channel")
	}
	return room, c != nil
}

func (s *Server) getChannel(w http.ResponseWriter, r *http.Request) {
	if c, ok := s.room(w, r); ok {
		answer(w, c)
	}
}

// getMessages gives those after an id, newest first, as Discord does.
func (s *Server) getMessages(w http.ResponseWriter, r *http.Request) {
	if f := s.fault(&s.reads); f.Status != 0 {
		s.fail(w, r, f)
		return
	}
	c, ok := s.room(w, r)
	if !ok {
		return
	}
	after, _ := strconv.ParseInt(r.URL.Query().Get("after"), 10, 64)
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []Message{}
	for _, m := range s.history[c.ID] {
		if id, _ := strconv.ParseInt(m.ID, 10, 64); id > after && len(found) < limit {
			seen := *m
			seen.Nonce, seen.Guild = "", "" // a history has neither
			found = append(found, seen)
		}
	}
	slices.Reverse(found)
	answer(w, found)
}

// fault takes the next fault of a list.
func (s *Server) fault(list *[]PostFault) PostFault {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(*list) == 0 {
		return PostFault{}
	}
	f := (*list)[0]
	*list = (*list)[1:]
	return f
}

// fail answers with a fault's status.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, f PostFault) {
	if f.Status == http.StatusTooManyRequests {
		h := w.Header()
		h.Set("Retry-After", stamp(f.After))
		h.Set("X-RateLimit-Remaining", "0")
		h.Set("X-RateLimit-Reset-After", stamp(f.After))
		if f.Global {
			h.Set("X-RateLimit-Global", "true")
		}
		if !f.Page {
			h.Set("Content-Type", "application/json")
			w.WriteHeader(f.Status)
			_ = json.NewEncoder(w).Encode(map[string]any{"message": "You are being rate limited.", "retry_after": f.After.Seconds(), "global": f.Global})
			return
		}
	}
	if f.Page {
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, "<html>"+s.Token+"</html>")
		return
	}
	s.refuse(w, r, f.Status, f.Code, "refused")
}

func (s *Server) post(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Content   string     `json:"content"`
		Nonce     string     `json:"nonce"`
		Enforce   bool       `json:"enforce_nonce"`
		Reference *Reference `json:"message_reference"`
		Allowed   *struct {
			Parse []string `json:"parse"`
		} `json:"allowed_mentions"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		// Not counted: net/http sends a request's header before it asks the body for its first byte, where an adapter's check may end it.
		s.refuse(w, r, http.StatusBadRequest, 50109, "The request body contains invalid JSON.")
		return
	}
	s.mu.Lock()
	s.requests++
	s.mu.Unlock()
	f := s.fault(&s.faults)
	if f.Status != 0 {
		s.fail(w, r, f)
		return
	}
	c, ok := s.room(w, r)
	switch {
	case !ok:
		return
	case body.Content == "" || utf8.RuneCountInString(body.Content) > 2000 || len(body.Nonce) > 25:
		s.refuse(w, r, http.StatusBadRequest, 50035, "Invalid Form Body")
		return
	case body.Allowed == nil || len(body.Allowed.Parse) > 0:
		s.refuse(w, r, http.StatusTeapot, 0, "the fake wants mentions to be switched off")
		return
	}
	m := s.keep(c, body.Content, body.Nonce, body.Enforce, body.Reference)
	switch {
	case f.Lose:
		panic(http.ErrAbortHandler)
	case f.Garbage:
		_, _ = io.WriteString(w, `{"id": <html>`+s.Token)
	case f.Hang:
		<-r.Context().Done()
	default:
		answer(w, m)
	}
}

// keep makes the message, or returns the one that has this nonce.
func (s *Server) keep(c Channel, text, nonce string, enforce bool, ref *Reference) Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.nonces[nonce]; enforce && old != nil && time.Since(old.At) < NonceWindow {
		return *old
	}
	kind := 0
	if ref != nil {
		kind, ref.Channel = 19, c.ID
	}
	m := s.sayLocked(Message{Channel: c.ID, Type: kind, Content: text, Nonce: nonce, Reference: ref, Author: User{ID: BotID, Username: "gatemesh", Bot: true}})
	if nonce != "" {
		s.nonces[nonce] = m
	}
	s.posted = append(s.posted, *m)
	return *m
}

// ForgetNonces is what the passing of [NonceWindow] does.
func (s *Server) ForgetNonces() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.nonces)
}

func (s *Server) react(w http.ResponseWriter, r *http.Request) {
	if _, ok := s.room(w, r); !ok {
		return
	}
	s.mu.Lock()
	s.reactions[r.PathValue("message")] = r.Method == http.MethodPut
	s.mu.Unlock()
	w.WriteHeader(http.StatusNoContent)
}
