// Package whatsapp is the channel WhatsApp. (doc)
package whatsapp
