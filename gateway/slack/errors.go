package slack

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/slack-go/slack"

	"github.com/gatemesh/gatemesh/gateway"
)

// asType is errors.AsType, as long as go.mod allows an older Go.
func asType[E error](err error) (E, bool) {
	var e E
	ok := errors.As(err, &e)
	return e, ok
}

// verdict is what an error of the Web API says of the call's effect.
type verdict int

const (
	unknown  verdict = iota // it may have been done
	notDone                 // it was not done, and may be later
	rejected                // it was not done, and never will be
	badCredentials
)

// verdicts are Slack's error codes whose verdict is not "rejected": what Slack answers with ok=false it has not done,
// but for the failures of its own of which its documentation says that part may have been.
var verdicts = map[string]verdict{
	"fatal_error": unknown, "internal_error": unknown, "service_unavailable": unknown,

	"ratelimited": notDone, "rate_limited": notDone, "message_limit_exceeded": notDone, "request_timeout": notDone,
	"team_added_to_org": notDone, "external_channel_migrating": notDone, "accesslimited": notDone,

	"not_authed": badCredentials, "invalid_auth": badCredentials, "account_inactive": badCredentials, "token_revoked": badCredentials,
	"token_expired": badCredentials, "missing_scope": badCredentials, "not_allowed_token_type": badCredentials, "no_permission": badCredentials,
	"access_denied": badCredentials, "ekm_access_denied": badCredentials, "org_login_required": badCredentials,
	"team_access_not_granted": badCredentials, "two_factor_setup_required": badCredentials, "enterprise_is_restricted": badCredentials,
}

// judge says what err means for the effect of the call, and when Slack wants the next one.
func judge(err error) (verdict, time.Duration) {
	if limited, ok := asType[*slack.RateLimitedError](err); ok {
		return notDone, limited.RetryAfter
	}
	if answer, ok := asType[slack.SlackErrorResponse](err); ok {
		if v, ok := verdicts[answer.Err]; ok {
			return v, 0
		}
		return rejected, 0
	}
	if status, ok := asType[slack.StatusCodeError](err); ok {
		switch code := status.Code; {
		case code == http.StatusTooManyRequests:
			return notDone, 0
		case code >= http.StatusInternalServerError || code == http.StatusRequestTimeout || code < http.StatusMultipleChoices:
			return unknown, 0
		default: // Slack refuses with 200 and ok=false: this comes from something in between, and may pass
			return notDone, 0
		}
	}
	return unknown, 0
}

// fix says what a person can do about refused credentials.
func fix(err error) string {
	answer, _ := asType[slack.SlackErrorResponse](err)
	switch answer.Err {
	case "missing_scope":
		return "add the scope " + answer.Needed + " on the app's page OAuth & Permissions and install the app again"
	case "not_allowed_token_type":
		return "channels.slack.appToken wants the app-level token (xapp-...), botToken the bot token (xoxb-...)"
	case "account_inactive", "token_revoked", "token_expired":
		return "install the app to the workspace again and put the new token into channels.slack.botToken or appToken"
	}
	return "compare channels.slack.botToken and appToken with the app's pages OAuth & Permissions and Basic Information"
}

// problem is an error of a call without anything secret in it. Of what was beneath only the end of a context stays visible:
// the rest might hold a token or a URL with a ticket.
type problem struct {
	text string
	ctx  error
}

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return p.ctx }

// clean makes of err an error that may be shown.
func (a *account) clean(doing string, err error, secrets ...string) error {
	p := &problem{}
	for _, c := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, c) {
			p.ctx = c
		}
	}
	if ue, ok := asType[*url.Error](err); ok {
		err = ue.Err // the URL of a WebSocket holds its ticket
	}
	p.text = doing + ": " + err.Error()
	for _, s := range append(secrets, a.secrets...) {
		if s != "" {
			p.text = strings.ReplaceAll(strings.ReplaceAll(p.text, s, "[secret]"), url.QueryEscape(s), "[secret]")
		}
	}
	return p
}

// explain makes of a call's error what the contract of [gateway.Channel] wants. left says whether anything of the request may
// have left this process.
func (a *account) explain(doing string, err error, left bool) error {
	v, after := judge(err)
	said := a.clean(doing, err)
	if status, ok := asType[slack.StatusCodeError](err); ok && v == notDone && status.Code != http.StatusTooManyRequests {
		said = fmt.Errorf("%w (not Slack's own answer: look at channels.slack.apiUrl and at what stands between this node and Slack)", said)
	}
	switch {
	case v == badCredentials:
		return gateway.BadCredentials(fix(err), said)
	case v == rejected:
		return gateway.Rejected(said)
	case v == notDone || !left:
		return gateway.NotSent(after, said)
	}
	return fmt.Errorf("whether Slack took it is not known: %w", said)
}
