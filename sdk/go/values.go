package antiphon

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

// Payload is the envelope of a value: inline bytes or a reference, with media type and labels. A handler that takes or
// returns *Payload gets or gives it as it is.
type Payload = antiphonv1.Payload

// PartialOutput is a piece of output that comes before the output: Text or Json, or Withheld with the reason why neither is shown.
// A gap in the offsets tells that something was left out.
type PartialOutput = antiphonv1.PartialOutput

var payloadType = reflect.TypeFor[*Payload]()

// codec is how values of one type travel in payloads.
type codec struct {
	shape  *shape
	schema string
	err    error
}

var codecs sync.Map // reflect.Type → codec; as many as a program has types that travel

func codecOf(kind reflect.Type) codec {
	if known, ok := codecs.Load(kind); ok {
		return known.(codec)
	}
	var made codec
	if kind != payloadType {
		made.shape, made.schema, made.err = shapeOf(kind)
	}
	codecs.Store(kind, made)
	return made
}

// Decode gives the JSON value of a payload as a T, strictly: required fields must be there and types must fit. Absent content
// is null. It fails for other media types and for values kept by reference; see Client.DownloadPayload.
func Decode[T any](payload *Payload) (T, error) {
	var value T
	if whole, ok := any(&value).(**Payload); ok {
		*whole = payload
		return value, nil
	}
	if wrong := decode(payload, reflect.ValueOf(&value).Elem()); wrong != nil {
		return value, wrong
	}
	return value, nil
}

// decode puts a payload into a value. The failure is INVALID_INPUT, which is what it is for a handler.
func decode(payload *Payload, into reflect.Value) error {
	codec := codecOf(into.Type())
	if codec.err != nil {
		return codec.err
	}
	if blob := payload.GetBlob(); blob != nil {
		return InvalidInput("the value is kept by reference (%d bytes); take it as *antiphon.Payload and fetch it with "+
			"Client.DownloadPayload", blob.GetSize())
	}
	media, _, _ := strings.Cut(payload.GetMediaType(), ";")
	if media = strings.TrimSpace(media); media != "" && media != "application/json" {
		return InvalidInput("the value is %s, not JSON; take it as *antiphon.Payload", media)
	}
	var value any
	if payload.GetContent() != nil {
		decoder := json.NewDecoder(bytes.NewReader(payload.GetInline()))
		decoder.UseNumber()
		if err := decoder.Decode(&value); err != nil {
			return InvalidInput("the value is not JSON") // the decoder's own words quote it
		}
		if _, err := decoder.Token(); err != io.EOF {
			return InvalidInput("the value is followed by more than JSON allows")
		}
	}
	if wrong := codec.shape.decode(value, into); wrong != nil {
		return InvalidInput("%s", wrong.message).WithField(wrong.pointer())
	}
	return nil
}

// encode spells a value as a payload whose content is at most `limit` bytes; a *Payload is one already. The failure is
// INVALID_OUTPUT, which is what it is for a handler.
func encode(value any, limit int) (*Payload, error) {
	if whole, ok := value.(*Payload); ok && whole != nil {
		if err := fits(len(whole.GetInline()), limit); err != nil {
			return nil, err
		}
		if err := travels(whole, limit); err != nil {
			return nil, InvalidOutput("the value cannot travel: %w", err)
		}
		return whole, nil
	}
	data, err := encodeJSON(value)
	if err != nil {
		return nil, err
	}
	return inline(data), fits(len(data), limit)
}

func encodeJSON(value any) ([]byte, error) {
	if value == nil {
		return []byte("null"), nil
	}
	kind := reflect.TypeOf(value)
	codec := codecOf(kind)
	if codec.err != nil {
		return nil, codec.err
	}
	if codec.shape == nil {
		return []byte("null"), nil // a *Payload that is nil
	}
	data, wrong := codec.shape.encode(nil, reflect.ValueOf(value))
	if wrong != nil {
		return nil, InvalidOutput("%s", wrong.message).WithField(wrong.pointer())
	}
	return data, nil
}

func inline(data []byte) *Payload {
	return &Payload{Content: &antiphonv1.Payload_Inline{Inline: data}}
}

// sendable fails for a message with text that is not UTF-8. It is for where a message is made: on its way it would break the stream
// that others share, or look like a connection that broke.
func sendable(message proto.Message) error {
	_, err := proto.Marshal(message)
	return err
}

// travels fails for a message of one value with text that is not UTF-8, and for one that is too large with what comes with the value,
// labels above all: sidecars refuse it, and from 4 MiB on it would break the stream that others share.
func travels(message proto.Message, limit int) error {
	if err := sendable(message); err != nil {
		return err
	}
	if size := proto.Size(message); size > limit+extrasBytes {
		return fmt.Errorf("with its labels and texts it has %d bytes, larger than %d bytes", size, limit+extrasBytes)
	}
	return nil
}

func fits(size, limit int) error {
	if size <= limit {
		return nil
	}
	return InvalidOutput("the value has %d bytes, larger than %d bytes; make it smaller, or upload it with "+
		"Client.UploadPayload and give the *antiphon.Payload that it answers", size, limit)
}

// JSON spells a value for a field of a graph that holds JSON text, such as GraphTask.Input. It panics for what cannot travel.
func JSON(value any) string {
	data, err := encodeJSON(value)
	if err != nil {
		panic(fmt.Sprintf("antiphon.JSON: %v", err))
	}
	return string(data)
}
