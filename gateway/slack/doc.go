// Package slack is the channel "slack": one Slack app in one workspace.
package slack
