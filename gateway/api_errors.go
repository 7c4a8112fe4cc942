package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"strconv"
	"strings"

	"github.com/gatemesh/gatemesh/bus"
	"github.com/gatemesh/gatemesh/envelope"
)

func badRequest(field, format string, args ...any) *APIError {
	return &APIError{status: http.StatusBadRequest, Code: CodeInvalid, Field: field, Message: fmt.Sprintf(format, args...)}
}

func internalError() *APIError {
	return &APIError{status: http.StatusInternalServerError, Code: CodeInternal, Message: "something is wrong in this gateway; its log says more"}
}

// errorCodes maps the bus's errors, the first that fits: one that wraps several is judged by
// what it means for a message.
var errorCodes = []struct {
	err    error
	status int
	code   string
}{
	{bus.ErrOutcomeUnknown, http.StatusGatewayTimeout, CodeOutcomeUnknown},
	{bus.ErrTooLarge, http.StatusRequestEntityTooLarge, CodeTooLarge},
	{envelope.ErrInvalid, http.StatusBadRequest, CodeInvalid},
	{bus.ErrInboxFull, http.StatusTooManyRequests, CodeInboxFull},
	{bus.ErrExpired, http.StatusGone, CodeExpired},
	{bus.ErrNobody, http.StatusNotFound, CodeUnknownAgent},
	{bus.ErrUnknownAgent, http.StatusNotFound, CodeUnknownAgent},
	{bus.ErrNotFound, http.StatusNotFound, CodeNotFound},
	{bus.ErrEnded, http.StatusConflict, CodeEnded},
	{bus.ErrUnread, http.StatusServiceUnavailable, CodeUnread},
	{bus.ErrStopped, http.StatusServiceUnavailable, CodeStopping},
	{bus.ErrClosed, http.StatusServiceUnavailable, CodeStopping},
	{bus.ErrContended, http.StatusServiceUnavailable, CodeContended},
	{bus.ErrNoEncryptionKey, http.StatusServiceUnavailable, CodeNoEncryptionKey},
	{bus.ErrUntrusted, http.StatusServiceUnavailable, CodeUntrusted},
	{bus.ErrForbidden, http.StatusServiceUnavailable, CodeStoreForbidden},
	{bus.ErrUnavailable, http.StatusServiceUnavailable, CodeStoreUnavailable},
	{bus.ErrNoSession, http.StatusServiceUnavailable, CodeStoreUnavailable},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, CodeTimeout},
	{context.Canceled, statusClientGone, CodeClientGone},
}

// apiError is the one mapping of errors to answers. What is not known is a bug here: it is
// logged, and not shown.
func apiError(err error) (_ *APIError, known bool) {
	if e := (*APIError)(nil); errors.As(err, &e) {
		return e, true
	}
	if b := (*envelope.BudgetError)(nil); errors.As(err, &b) {
		return &APIError{status: http.StatusBadRequest, Code: CodeInvalid, Field: "budget", Message: err.Error()}, true
	}
	if s := (*bus.SpoiledError)(nil); errors.As(err, &s) {
		return &APIError{status: http.StatusConflict, Code: CodeSpoiled, Message: err.Error()}, true
	}
	for _, c := range errorCodes {
		if errors.Is(err, c.err) {
			return &APIError{status: c.status, Code: c.code, Message: err.Error()}, true
		}
	}
	return internalError(), false
}

// aboutMessage names the message that err is about.
func aboutMessage(err error, id string) error {
	e, known := apiError(err)
	if !known || id == "" {
		return err
	}
	c := *e
	c.MessageID = id
	return &c
}

func (g *Gateway) writeError(w http.ResponseWriter, r *http.Request, err error) {
	e, known := apiError(err)
	if !known {
		g.log.Error("API request failed", "method", r.Method, "route", r.Pattern, "error", err)
	}
	if e.status == http.StatusServiceUnavailable || e.status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(e.retry.Seconds())))))
	}
	if openAIRoute(r.Pattern) {
		writeOpenAIError(w, e)
		return
	}
	_ = writeJSON(w, e.status, ErrorResponse{*e})
}

// decodeBody reads a JSON object strictly. The route has bounded the body.
func decodeBody(r *http.Request, into any) error { return decodeJSON(r, into, true) }

// decodeJSON reads a JSON object. Without strict, fields that are not known are passed over.
func decodeJSON(r *http.Request, into any, strict bool) error {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return &APIError{status: http.StatusUnsupportedMediaType, Code: CodeContentType, Message: "send JSON, with the header Content-Type: application/json"}
	}
	dec := json.NewDecoder(r.Body)
	if strict {
		dec.DisallowUnknownFields()
	}
	err := dec.Decode(into)
	if err == nil {
		switch _, more := dec.Token(); more {
		case io.EOF:
			return nil
		case nil:
			return badRequest("", "there is something behind the JSON object")
		default:
			err = more
		}
	}
	var tooLarge *http.MaxBytesError
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	unknown, isUnknown := strings.CutPrefix(err.Error(), "json: unknown field ")
	switch {
	case errors.As(err, &tooLarge):
		return &APIError{status: http.StatusRequestEntityTooLarge, Code: CodeTooLarge, Message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	case errors.Is(err, io.EOF):
		return badRequest("", "the body is empty: send a JSON object")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return badRequest("", "the JSON ends too early")
	case errors.As(err, &syntax):
		return badRequest("", "not JSON at byte %d: %v", syntax.Offset, syntax)
	case errors.As(err, &kind):
		return badRequest(kind.Field, "%s is a JSON %s; want %s", orBody(kind.Field), kind.Value, wantedKind(kind))
	case isUnknown:
		field, uerr := strconv.Unquote(unknown)
		if uerr != nil {
			field = unknown
		}
		return badRequest(clipText(field, 80), "there is no field %q", clipText(field, 80))
	}
	return badRequest("", "the body could not be read")
}

func orBody(field string) string {
	if field == "" {
		return "the body"
	}
	return field
}

func wantedKind(e *json.UnmarshalTypeError) string {
	switch e.Type.Kind().String() {
	case "string":
		return "a string"
	case "bool":
		return "true or false"
	case "int", "int64":
		return "a whole number"
	}
	return "an object"
}
