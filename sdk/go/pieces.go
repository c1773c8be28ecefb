package antiphon

import (
	"encoding/json"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

const (
	pieceText     = 4096 // characters
	pieceJSON     = 16 << 10
	pieceLabels   = 15 << 10  // bytes, so that a piece has less than the 32 KiB that sidecars take
	piecesMaker   = 64 << 10  // bytes that may wait of one attempt
	piecesAll     = 1 << 20   // and of all
	piecesMessage = 64        // pieces in one message
	piecesRoom    = 256 << 10 // and about so many bytes: what counts travels in the same messages
	pieceOverhead = 64
)

// pieces of output wait here for their way on. They are worth little, and only in time: what finds no room is left out, which the
// offsets show. Text that follows text is joined, so that many small pieces become one larger one.
type pieces struct {
	waiting map[string][]*antiphonv1.PartialOutput
	turns   []string // who waits, in turn
	bytes   map[string]int
	all     int
}

func newPieces() pieces {
	return pieces{waiting: map[string][]*antiphonv1.PartialOutput{}, bytes: map[string]int{}}
}

func (p *pieces) empty() bool { return len(p.turns) == 0 }

func (p *pieces) add(maker string, piece *antiphonv1.PartialOutput) {
	waiting := p.waiting[maker]
	size, joined := sizeOfPiece(piece), false
	if len(waiting) > 0 {
		if joined = continues(waiting[len(waiting)-1], piece); joined {
			size = len(piece.GetText())
		}
	}
	if p.bytes[maker]+size > piecesMaker || p.all+size > piecesAll {
		return
	}
	if joined {
		last := waiting[len(waiting)-1]
		last.Content = &antiphonv1.PartialOutput_Text{Text: last.GetText() + piece.GetText()}
	} else {
		if len(waiting) == 0 {
			p.turns = append(p.turns, maker)
		}
		p.waiting[maker] = append(waiting, piece)
	}
	p.bytes[maker] += size
	p.all += size
}

// take gives what goes into the next message; makers take turns.
func (p *pieces) take() []*antiphonv1.PartialUpdate {
	var taken []*antiphonv1.PartialUpdate
	for room := piecesRoom; len(p.turns) > 0 && len(taken) < piecesMessage && room > 0; {
		maker := p.turns[0]
		p.turns = p.turns[1:]
		piece := p.waiting[maker][0]
		size := sizeOfPiece(piece)
		taken = append(taken, &antiphonv1.PartialUpdate{AttemptId: maker, Partial: piece})
		room -= size
		p.all -= size
		p.bytes[maker] -= size
		if p.waiting[maker] = p.waiting[maker][1:]; len(p.waiting[maker]) > 0 {
			p.turns = append(p.turns, maker)
		} else {
			delete(p.waiting, maker)
			delete(p.bytes, maker)
		}
	}
	return taken
}

func sizeOfPiece(piece *antiphonv1.PartialOutput) int {
	return contentBytes(piece) + pieceOverhead
}

// contentBytes is what offsets count by.
func contentBytes(piece *antiphonv1.PartialOutput) int {
	return len(piece.GetText()) + len(piece.GetJson())
}

func continues(before, piece *antiphonv1.PartialOutput) bool {
	_, text := before.GetContent().(*antiphonv1.PartialOutput_Text)
	_, more := piece.GetContent().(*antiphonv1.PartialOutput_Text)
	return text && more && before.GetOffset()+uint64(len(before.GetText())) == piece.GetOffset() &&
		utf8.RuneCountInString(before.GetText())+utf8.RuneCountInString(piece.GetText()) <= pieceText &&
		slices.EqualFunc(before.GetLabels(), piece.GetLabels(), func(a, b *antiphonv1.Label) bool { return proto.Equal(a, b) })
}

// piecesOf makes what may travel of what a handler emits; offsets are not set.
func piecesOf(value any) ([]*antiphonv1.PartialOutput, error) {
	var labels []*antiphonv1.Label
	if payload, whole := value.(*Payload); whole {
		labels = slices.Clone(payload.GetLabels())
		for _, part := range payload.GetFieldLabels() {
			labels = append(labels, part.GetLabels()...)
		}
		if err := sendable(&antiphonv1.PartialOutput{Labels: labels}); err != nil {
			return nil, InvalidOutput("what is emitted cannot travel: %w", err)
		}
		if size := proto.Size(&antiphonv1.PartialOutput{Labels: labels}); size > pieceLabels {
			return nil, InvalidOutput("what is emitted cannot travel: its labels have %d bytes, larger than %d bytes", size, pieceLabels)
		}
		if strings.HasPrefix(payload.GetMediaType(), "text/") {
			value = string(payload.GetInline())
		} else {
			decoded, err := Decode[any](payload)
			if err != nil {
				return nil, InvalidOutput("what is emitted cannot travel: %w", err)
			}
			value = decoded
		}
	}
	text, isText := value.(string)
	if !isText {
		data, err := json.Marshal(value)
		if err != nil {
			return nil, InvalidOutput("what is emitted cannot travel: %w", err)
		}
		if len(data) > pieceJSON {
			return nil, InvalidOutput("what is emitted has %d bytes as JSON; at most %d travel, or any text", len(data), pieceJSON)
		}
		content := &antiphonv1.PartialOutput_Json{Json: data}
		return []*antiphonv1.PartialOutput{{Content: content, Labels: labels}}, nil
	}
	var made []*antiphonv1.PartialOutput
	for rest := []rune(strings.ToValidUTF8(text, "\uFFFD")); len(rest) > 0; {
		count := min(len(rest), pieceText)
		content := &antiphonv1.PartialOutput_Text{Text: string(rest[:count])}
		made = append(made, &antiphonv1.PartialOutput{Content: content, Labels: labels})
		rest = rest[count:]
	}
	return made, nil
}
