package openclawgw

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/gatemesh/gatemesh/gateway"
)

// The words of OpenClaw's errors.
const (
	codeInvalid     = "INVALID_REQUEST"
	codeUnavailable = "UNAVAILABLE"
	codeTimeout     = "AGENT_TIMEOUT"
)

type wireError struct {
	Code      string         `json:"code"`
	Message   string         `json:"message"`
	Details   map[string]any `json:"details,omitempty"`
	Retryable bool           `json:"retryable,omitempty"`
}

func (e *wireError) Error() string { return e.Message }

func invalid(format string, args ...any) *wireError {
	return &wireError{Code: codeInvalid, Message: fmt.Sprintf(format, args...)}
}

// refusal is an error of the gateway's API.
type refusal struct {
	status int
	api    gateway.APIError
}

func (e *refusal) Error() string { return e.api.Message }

// wire makes of an error what OpenClaw's clients read.
func wire(err error) *wireError {
	var w *wireError
	var r *refusal
	switch {
	case errors.As(err, &w):
		return w
	case errors.As(err, &r):
		w = &wireError{Code: codeInvalid, Message: r.api.Message, Details: map[string]any{"code": r.api.Code}}
		if r.status == http.StatusTooManyRequests || r.status >= http.StatusInternalServerError {
			w.Code, w.Retryable = codeUnavailable, r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable
		}
		return w
	}
	return &wireError{Code: codeUnavailable, Message: "the gateway could not do it: " + err.Error()}
}

// get reads from the gateway's API, post sends to it.
func (c *connection) get(path string, out any) error { return c.ask(http.MethodGet, path, nil, out) }

func (c *connection) post(path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return c.ask(http.MethodPost, path, b, out)
}

func (c *connection) ask(method, path string, body []byte, out any) error {
	status, answer, err := c.call(c.ctx, method, path, body)
	if err != nil {
		return err
	}
	if status < http.StatusBadRequest {
		return json.Unmarshal(answer, out)
	}
	var e gateway.ErrorResponse
	if json.Unmarshal(answer, &e) != nil || e.Error.Code == "" {
		return fmt.Errorf("the gateway answers with HTTP %d", status)
	}
	return &refusal{status: status, api: e.Error}
}

// params reads what a request is about. Fields that are not known are passed over: clients of other versions have others.
func params(r request, into any) error {
	raw := bytes.TrimSpace(r.Params)
	if len(raw) == 0 {
		raw = []byte("{}")
	}
	if err := json.Unmarshal(raw, into); err != nil {
		var kind *json.UnmarshalTypeError
		if errors.As(err, &kind) && kind.Field != "" {
			return invalid("invalid %s params: at /%s: it is a %s", clip(r.Method), kind.Field, kind.Value)
		}
		return invalid("invalid %s params: not an object", clip(r.Method))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}
