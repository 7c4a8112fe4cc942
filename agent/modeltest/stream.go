package modeltest

import (
	"encoding/json"
	"fmt"
)

// halves splits a text in two, so that streams have more than one piece.
func halves(s string) [2]string { return [2]string{s[:len(s)/2], s[len(s)/2:]} }

type object = map[string]any

func openAIEvents(step Step) (lines []string) {
	chunk := func(delta object, finish any) {
		data, _ := json.Marshal(object{
			"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub",
			"choices": []object{{"index": 0, "delta": delta, "finish_reason": finish}},
		})
		lines = append(lines, fmt.Sprintf("data: %s\n\n", data))
	}
	chunk(object{"role": "assistant", "content": ""}, nil)
	for _, part := range halves(step.Text) {
		chunk(object{"content": part}, nil)
	}
	for i, c := range step.Calls {
		chunk(object{"tool_calls": []object{{"index": i, "id": c.ID, "type": "function", "function": object{"name": c.Name, "arguments": ""}}}}, nil)
		for _, part := range halves(string(c.Arguments)) {
			chunk(object{"tool_calls": []object{{"index": i, "function": object{"arguments": part}}}}, nil)
		}
	}
	finish := "stop"
	switch {
	case step.Limit:
		finish = "length"
	case len(step.Calls) > 0:
		finish = "tool_calls"
	}
	chunk(object{}, finish)
	data, _ := json.Marshal(object{
		"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "stub", "choices": []object{},
		"usage": object{"prompt_tokens": step.Usage.In, "completion_tokens": step.Usage.Out, "total_tokens": step.Usage.Total()},
	})
	return append(lines, fmt.Sprintf("data: %s\n\n", data), "data: [DONE]\n\n")
}

func anthropicEvents(step Step) (lines []string) {
	event := func(kind string, o object) {
		o["type"] = kind
		data, _ := json.Marshal(o)
		lines = append(lines, fmt.Sprintf("event: %s\ndata: %s\n\n", kind, data))
	}
	event("message_start", object{"message": object{
		"id": "msg_1", "type": "message", "role": "assistant", "model": "stub", "content": []object{},
		"usage": object{"input_tokens": step.Usage.In, "output_tokens": 1},
	}})
	index := 0
	block := func(start object, deltas ...object) {
		event("content_block_start", object{"index": index, "content_block": start})
		for _, d := range deltas {
			event("content_block_delta", object{"index": index, "delta": d})
		}
		event("content_block_stop", object{"index": index})
		index++
	}
	if step.Text != "" {
		h := halves(step.Text)
		block(object{"type": "text", "text": ""}, object{"type": "text_delta", "text": h[0]}, object{"type": "text_delta", "text": h[1]})
	}
	for _, c := range step.Calls {
		h := halves(string(c.Arguments))
		block(object{"type": "tool_use", "id": c.ID, "name": c.Name, "input": object{}},
			object{"type": "input_json_delta", "partial_json": h[0]}, object{"type": "input_json_delta", "partial_json": h[1]})
	}
	reason := "end_turn"
	switch {
	case step.Limit:
		reason = "max_tokens"
	case len(step.Calls) > 0:
		reason = "tool_use"
	}
	event("message_delta", object{"delta": object{"stop_reason": reason}, "usage": object{"output_tokens": step.Usage.Out}})
	event("message_stop", object{})
	return lines
}
