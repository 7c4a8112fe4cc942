// Package discord connects a Discord bot.
package discord
