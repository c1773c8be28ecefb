package antiphon

import (
	"math"
	"strings"
	"testing"

	antiphonv1 "antiphon.dev/antiphon/v1"
)

func textsOf(updates []*antiphonv1.PartialUpdate) string {
	var all strings.Builder
	for _, update := range updates {
		all.WriteString(update.GetPartial().GetText())
	}
	return all.String()
}

func emitted(t *testing.T, box *pieces, offset uint64, values ...any) uint64 {
	t.Helper()
	for _, value := range values {
		made, err := piecesOf(value)
		if err != nil {
			t.Fatal(err)
		}
		for _, piece := range made {
			piece.Offset = offset
			offset += uint64(contentBytes(piece))
			box.add("a", piece)
		}
	}
	return offset
}

func TestTextThatFollowsTextIsJoinedAndNothingElseIs(t *testing.T) {
	box := newPieces()
	labelled := inline([]byte(`"d"`))
	labelled.Labels = []*antiphonv1.Label{{Key: "pii"}}
	emitted(t, &box, 0, "ab", "ü", labelled, map[string]int{"e": 1}, "f", "g")
	var seen []string
	for _, update := range box.take() {
		seen = append(seen, update.GetPartial().GetText()+string(update.GetPartial().GetJson()))
	}
	if got := strings.Join(seen, "|"); got != `abü|d|{"e":1}|fg` {
		t.Error(got)
	}
	if !box.empty() || box.all != 0 {
		t.Error(box)
	}
}

func TestNoMorePiecesWaitThanThereIsRoomForAndTheGapShows(t *testing.T) {
	box := newPieces()
	offset := emitted(t, &box, 0, strings.Repeat("x", 2*piecesMaker))
	kept := len(textsOf(box.take()))
	if kept == 0 || kept > piecesMaker {
		t.Error(kept)
	}
	emitted(t, &box, offset, "end")
	last := box.take()[0].GetPartial()
	if last.GetText() != "end" || last.GetOffset() != 2*piecesMaker {
		t.Error(last)
	}
}

func TestWhatCannotTravelIsRefusedWhereItIsEmitted(t *testing.T) {
	image := inline([]byte("x"))
	image.MediaType = "image/png"
	for _, value := range []any{math.NaN(), image, []string{strings.Repeat("x", pieceJSON)}} {
		if _, err := piecesOf(value); err == nil || !strings.Contains(err.Error(), "what is emitted") {
			t.Error(err)
		}
	}
}
